"""Run the parts of a GPU's check and write their report; gpu_check.sh has the usage and the settings.

A part is a list of commands that print Markdown: the other scripts of this folder, and `gpu_parts.py`. Each
runs in a process of its own, so that an error or a crash costs only its own result.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llava.command import run
from llava.errors import SettingsError
from llava.files import atomic_write, read_json, write_json

REPO = Path(__file__).resolve().parents[2]
BENCH = "scripts/bench"
PART_SECONDS = 530.0
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "liger-kernel",
    "flash-attn",
)
TITLES = {
    "device": "What the device is, and which kernels it picks",
    "tests": "Tests that need a GPU",
    "eval": "Answering",
    "train": "Training: speed, utilisation, memory against the plan",
    "resume": "A real run, stopped and resumed",
    "limits": "bfloat16, too little memory, 4 and 8 bits",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A command of a part: what it shows, and the arguments of `python`."""

    title: str
    arguments: tuple[str, ...]


def list_checks(work: Path, *, rehearse: bool) -> dict[str, list[Check]]:
    """Return the checks of each part: on a GPU at 7B's shape, or as a rehearsal on the CPU at a tiny one."""
    where = ("--device", "cpu", "--shape", "tiny") if rehearse else ("--device", "cuda", "--shape", "7b")
    # A tiny model's memory is too small to compare.
    planned = ("--work", str(work), *(("--device", "cpu", "--shape", "small") if rehearse else where))
    half = ("--dtype", "float32" if rehearse else "bfloat16")  # a CPU's bfloat16 is slow
    learned: tuple[str, ...] = ("LoRA, bf16", "projector only")
    quantised: tuple[str, ...] = ("QLoRA, bf16", "8 bits, bf16")
    if rehearse:
        learned, quantised = ("LoRA",), ("QLoRA",)
    few = ("--scale", "0.1") if rehearse else ("--scale", "3")
    fewer = ("--scale", "0.1") if rehearse else ()
    steps = ("--per-device", "2", "--batches", "1") if rehearse else ("--batches", "6")

    def script(title: str, name: str, *arguments: str) -> Check:
        return Check(title, (f"{BENCH}/{name}.py", *arguments))

    def part(title: str, name: str, *arguments: str) -> Check:
        return script(title, "gpu_parts", name, "--work", str(work), *where, *arguments)

    sharing, alone = ("gqa", "vqav2", "mmbench", "mme"), ("one", "one-32", "one-128", "mixed")
    return {
        "device": [part("Device", "device")],
        "tests": [
            Check("Tests", ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *_gpu_tests()))
        ],
        "eval": [
            script("Several questions an image", "eval_speed", *where, *few, "--kinds", *sharing),
            script("One question an image", "eval_speed", *where, *fewer, "--kinds", *alone),
        ],
        "train": [
            script("Speed", "train_speed", *where, *steps),
            script("Memory", "memory_plan", *planned, "--only", *learned),
        ],
        "resume": [part("Stop and resume", "resume")],
        "limits": [
            script(
                "Answers in bfloat16",
                *("eval_speed", *where, *half, *fewer, "--against", "loop", "--kinds", "gqa", "one"),
            ),
            part("Rounding", "rounding"),
            part("Too little memory", "memory"),
            script("4 and 8 bits", "memory_plan", *planned, "--only", *quantised),
        ],
    }


def _gpu_tests() -> list[str]:
    files = sorted((REPO / "tests").rglob("test_*.py"))
    return [str(path.relative_to(REPO)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def run_part(checks: Sequence[Check], work: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run a part's checks one after another, for so many seconds at most; yield a row of each."""
    deadline = time.monotonic() + seconds
    for check in checks:
        command = shlex.join(["python", *check.arguments]).replace(str(work), "WORK")
        print(f"{check.title}: {command}", flush=True)
        began = time.monotonic()
        output, error = _run_check(check, deadline - began)
        row = {"title": check.title, "command": command, "seconds": round(time.monotonic() - began, 1)}
        yield {**row, "error": error, "output": output, "tables": read_tables(output)}


def _run_check(check: Check, seconds: float) -> tuple[str, str | None]:
    """Return what a check printed, and why it failed, if it did."""
    if seconds <= 0:
        return "", "not run: the part's time was over"
    process = subprocess.Popen(
        [sys.executable, *check.arguments],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started itself
        output, errors = process.communicate()
        return output, f"stopped: the part's time was over\n{_tail(errors)}".strip()
    finally:
        if process.poll() is None:  # Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        return output, f"exit code {process.returncode}\n{_tail(errors)}".strip()
    return output, None


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def read_tables(markdown: str) -> list[list[dict[str, str]]]:
    """Return the rows of each table of a Markdown text, by column."""
    tables: list[list[dict[str, str]]] = []
    columns: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not columns:
            columns = cells
            tables.append([])
        elif set(line) - set("|- "):
            tables[-1].append(dict(zip(columns, cells, strict=False)))
    return tables


def describe_machine() -> dict[str, str]:
    """Return the names of the GPU and the processor, and the versions of what a run depends on."""
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        machine["gpu"] = "; ".join(
            subprocess.run(query, capture_output=True, text=True).stdout.split("\n")
        ).strip("; ")
    for name in PACKAGES:
        try:
            machine[name] = version(name)
        except PackageNotFoundError:
            machine[name] = "not installed"
    return machine


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Write the report of all parts as JSON and as a page."""
    write_json(out / "gpu_check.json", report)
    with atomic_write(out / "gpu_check.md") as file:
        file.write(make_page(report))


def make_page(report: Mapping[str, Any]) -> str:
    """Return the report's page."""
    lines = ["# GPU check", "", "Made by `bash scripts/bench/gpu_check.sh`. All weights are random."]
    names = [name for name in TITLES if name in report]
    lines += ["", "| part | check | seconds | result |", "| --- | --- | --- | --- |"]
    for name in names:
        for check in report[name]["checks"]:
            lines.append(f"| {name} | {check['title']} | {check['seconds']:.0f} | {_result(check)} |")
    if missing := [name for name in TITLES if name not in report]:
        lines += ["", f"Not run: {', '.join(missing)}."]
    lines += ["", "`scripts/bench/README.md` says what the columns mean."]
    for name in names:
        part = report[name]
        machine = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        lines += ["", f"## {TITLES[name]}", "", f"On {part['date']}; {machine}."]
        if part["is_rehearsal"]:
            lines += ["", "**A rehearsal on the CPU: these figures say nothing.**"]
        for check in part["checks"]:
            lines += ["", f"### {check['title']}", "", f"    {check['command']}", ""]
            lines += [check["output"].strip(), ""] if check["output"].strip() else []
            if check["error"]:
                lines += ["**Failed:**", "", *(f"    {line}" for line in check["error"].splitlines()), ""]
            lines.append(f"{check['seconds']:.0f} s.")
    return "\n".join(lines) + "\n"


def _result(check: Mapping[str, Any]) -> str:
    """Say whether a check passed, and of tests how many: those that are skipped show nothing."""
    if check["error"]:
        return f"**failed:** {check['error'].splitlines()[0]}"
    last = check["output"].strip().split("\n")[-1]
    return last if check["title"] == "Tests" else "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PART", help=f"{', '.join(TITLES)}; or report FILE...")
    words = parser.parse_args().words
    out = Path(os.environ.get("OUT", "gpu-check"))
    out.mkdir(parents=True, exist_ok=True)
    before = out / "gpu_check.json"
    report: dict[str, Any] = read_json(before) if before.exists() else {}
    if words[:1] == ["report"]:
        for path in words[1:]:
            report |= read_json(Path(path))
        write_report(out, report)
        return
    if unknown := [word for word in words if word not in TITLES]:
        raise SettingsError(f"no part {unknown[0]!r}; there are: {', '.join(TITLES)}", code="unknown-part")
    rehearse = os.environ.get("REHEARSE") == "1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(os.environ.get("WORK") or folder)
        checks = list_checks(work, rehearse=rehearse)
        for name in words or TITLES:
            part = {"date": str(date.today()), "machine": describe_machine(), "is_rehearsal": rehearse}
            report[name] = {**part, "checks": []}
            for row in run_part(checks[name], work, PART_SECONDS):
                report[name]["checks"].append(row)
                write_report(out, report)
    failed = [
        check["title"] for name in words or TITLES for check in report[name]["checks"] if check["error"]
    ]
    print(f"the report is in {out / 'gpu_check.md'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
