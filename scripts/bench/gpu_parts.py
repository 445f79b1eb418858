"""Measure one part of a GPU's check (gpu_check.sh), and print it as Markdown."""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from eval_speed import KINDS, SIZES, build, make_pictures, print_row, questions
from memory_plan import SHAPES, make_inputs
from torch.profiler import ProfilerActivity, profile

from llava.command import run
from llava.files import read_json
from llava.infer.engine.engine import Engine
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model.loading.placement import avoid_slow_kernels
from llava.train.planning.flops import known_rate, measured_rate

REPO = Path(__file__).resolve().parents[2]
STEPS, STOPPED_AFTER = 6, 3
LOSS_TOLERANCE = 1e-2  # in bfloat16, and GPUs sum gradients in no fixed order
# Leads in rounding steps, under which answers are counted.
STEPS_OF_LEAD = (1, 2, 4, 8, 16, 64)


def print_head(*columns: str) -> None:
    """Print the first two lines of a table."""
    print_row(*columns)
    print_row(*["---"] * len(columns))


def show_device(flags: argparse.Namespace) -> None:
    """Print what the device is, how fast its matrix products are, and which attention it takes."""
    device = torch.device(flags.device)
    rate = None
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        rate = known_rate(found.name)
        print(
            f"{found.name}: {found.total_memory / 2**30:.1f} GiB, "
            f"{found.multi_processor_count} multiprocessors, "
            f"compute capability {found.major}.{found.minor}; CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}; bfloat16: {torch.cuda.is_bf16_supported()}\n"
        )
    print_head("matrix products in", "TFLOP/s", "of the data sheet's")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        measured = measured_rate(device, dtype)
        share = f"{measured / rate:.0%}" if rate and dtype != torch.float32 else "-"
        print_row(str(dtype).removeprefix("torch."), f"{measured / 1e12:.3g}", share)
    print()
    show_attention(device)


def show_attention(device: torch.device) -> None:
    """Print which kernel PyTorch's attention takes, and what a length costs that it has not seen."""
    dtype, heads, size = (torch.float16, 32, 128) if device.type == "cuda" else (torch.float32, 2, 16)
    first = 700 if device.type == "cuda" else 70
    print_head("cuDNN's attention", "attention", "kernel", "ms, first time of a length", "ms, again")
    for number, is_allowed in enumerate((True, False)):
        torch.backends.cuda.enable_cudnn_sdp(is_allowed)
        if not is_allowed:
            avoid_slow_kernels()  # as every command of this package does
        for kind in ("causal", "masked", "causal, with gradients"):
            names: set[str] = set()
            spent: list[list[float]] = [[], []]
            for length in range(first + 40 * number, first + 40 * number + 8):
                once = _attend(kind, length, heads, size, device, dtype)
                for seconds in spent:
                    began = time.perf_counter()
                    once()
                    _wait(device)
                    seconds.append(1e3 * (time.perf_counter() - began))
                names |= _kernels(once)
            times = [f"{statistics.median(seconds[1:]):.3f}" for seconds in spent]
            print_row("allowed" if is_allowed else "off, as here", kind, ", ".join(sorted(names)), *times)


def _attend(
    kind: str, length: int, heads: int, size: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    learns = kind.endswith("gradients")
    # As a model has them: heads beside each other in a position.
    query, key, value = (
        torch.randn(1, length, heads, size, device=device, dtype=dtype).transpose(1, 2).requires_grad_(learns)
        for _ in range(3)
    )
    mask = torch.zeros(1, 1, length, length, device=device, dtype=dtype) if kind == "masked" else None

    def once() -> None:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        if learns:
            attended.backward(torch.ones_like(attended))

    _wait(device)
    return once


def _kernels(work: Callable[[], None]) -> set[str]:
    """Return the names of the implementations of attention that `work` uses."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    start = "aten::_scaled_dot_product_"
    keys = (event.key for event in recorded.key_averages())
    return {key.removeprefix(start) for key in keys if key.startswith(start) and "backward" not in key}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gqa_requests(folder: Path, count: int) -> list[Request]:
    texts, _ = questions(KINDS["gqa"], 1 + count // 32)
    pictures = make_pictures(folder, len(texts))
    pairs = zip(pictures, texts, strict=True)
    return [
        Request(prompt_of("vicuna_v1", text, "<image>\n"), (ImageFile(picture),))
        for picture, asked in pairs
        for text in asked
    ][:count]


def _dtypes(flags: argparse.Namespace) -> tuple[torch.dtype, ...]:
    return (torch.float16, torch.bfloat16) if flags.device == "cuda" else (torch.float32,)


def show_rounding(flags: argparse.Namespace) -> None:
    """Print how far an answer's lead moves when it is computed with others, in rounding steps."""
    count = 320 if flags.device == "cuda" else 8
    shares = [f"lead under {steps} steps" for steps in STEPS_OF_LEAD]
    print_head("precision", "prompts", "root mean square of steps", "most", "changed answers", *shares)
    for dtype in _dtypes(flags):
        with tempfile.TemporaryDirectory() as name:
            loaded = build(SIZES[flags.shape], flags.device, dtype, Path(name))
            requests = _gqa_requests(Path(name), count)
            once = Generation(max_new_tokens=1)
            together = dict(Engine(loaded, once, exact=False).answer(requests))
            alone = dict(Engine(loaded, once, batch_size=1).answer(requests))
        step = torch.finfo(dtype).eps
        both = [(together[n].lead or 0.0, alone[n].lead or 0.0) for n in range(len(requests))]
        leads = [(one / step, other / step) for one, other in both]
        moved = [abs(one - other) for one, other in leads]
        changed = sum(together[n].text != alone[n].text for n in alone)
        print_row(
            *(str(dtype).removeprefix("torch."), len(requests)),
            *(f"{math.sqrt(sum(each**2 for each in moved) / len(moved)):.2f}", f"{max(moved):.2f}", changed),
            *(f"{sum(one < steps for one, _ in leads) / len(leads):.1%}" for steps in STEPS_OF_LEAD),
        )
        del loaded


def show_memory(flags: argparse.Namespace) -> None:
    """Print whether the engine answers the same with too little memory for its batches."""
    with tempfile.TemporaryDirectory() as name:
        dtype = _dtypes(flags)[0]
        loaded = build(SIZES[flags.shape], flags.device, dtype, Path(name))
        requests = _gqa_requests(Path(name), 320 if flags.device == "cuda" else 8)
        print_head("memory", "GiB left for answering", "peak GiB", "positions at a time", "answers")
        wanted: list[str] = []
        for kind, left in (("enough", None), ("too little", 6.0), ("far too little", 2.0)):
            if flags.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with _limited(flags.device, left):
                engine = Engine(loaded, Generation(max_new_tokens=4))
                found = dict(engine.answer(requests))
                peak = torch.cuda.max_memory_allocated() / 2**30 if flags.device == "cuda" else None
            said = [found[index].text for index in range(len(requests))]
            wanted = wanted or said
            same = sum(a == b for a, b in zip(said, wanted, strict=True))
            print_row(
                *(kind, "all" if left is None else left, "-" if peak is None else f"{peak:.1f}"),
                *(engine._budget.positions, f"{same} of {len(said)} equal"),
            )
        if same < len(said) * 0.99:
            sys.exit("the answers differ")


@contextmanager
def _limited(device: str, gib: float | None) -> Iterator[None]:
    """Leave this process so many GiB of a GPU's memory on top of what it uses; all if None."""
    if device != "cuda" or gib is None:
        yield
        return
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min((torch.cuda.memory_reserved() + gib * 2**30) / total, 1.0))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def show_resume(flags: argparse.Namespace) -> None:
    """Print the losses of a run, and of one that is stopped by SIGTERM and started again."""
    make_inputs(flags.work, flags.shape, flags.device)
    whole, stopped = flags.work / "whole", flags.work / "stopped"
    _train(flags, whole)
    _train(flags, stopped, stop_after=STOPPED_AFTER)
    _train(flags, stopped)
    print_head("step", "loss", "loss of the run that was stopped", "samples/s", "utilisation")
    most = 0.0
    for one, other in zip(_read_log(whole), _read_log(stopped), strict=True):
        most = max(most, abs(one["loss"] - other["loss"]) / abs(one["loss"]))
        print_row(one["step"], one["loss"], other["loss"], one["samples_per_second"], f"{one['mfu']:.0%}")
    print(f"\nStopped after step {STOPPED_AFTER} or soon after. Losses differ by {most:.1e} of them at most.")
    if most > LOSS_TOLERANCE:
        sys.exit("the losses differ")


def _train(flags: argparse.Namespace, output: Path, stop_after: int | None = None) -> None:
    """Run a training script; ask it to stop when it has logged so many steps. Exit if it fails."""
    folder, samples = flags.work / flags.shape, SHAPES[flags.shape].samples
    environment = {
        **os.environ,
        **{"MODEL": str(folder / "model"), "VISION_TOWER": str(folder / "tower"), "PROJECTOR": ""},
        **{"DATA_PATH": str(folder / "data.json"), "IMAGE_FOLDER": str(folder), "OUTPUT_DIR": str(output)},
        **{"PER_DEVICE_BATCH": str(samples), "NPROC": "1", "PYTHON": sys.executable},
    }
    command = ["bash", str(REPO / "scripts/v1_5/finetune_lora.sh"), "--max_steps", str(STEPS)]
    command += ["--report_to", "none", "--disable_tqdm", "True"]
    if flags.device == "cpu":
        command += ["--bf16", "False", "--dataloader_num_workers", "0"]
    lines, logged = [], 0
    with subprocess.Popen(
        command,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "'loss'" in line:
                logged += 1
                if logged == stop_after:
                    process.send_signal(signal.SIGTERM)
    wanted = 0 if stop_after is None else 128 + signal.SIGTERM
    if process.returncode != wanted:
        sys.exit(f"exit code {process.returncode}, wanted {wanted}\n{''.join(lines[-20:])}")


def _read_log(output: Path) -> list[dict[str, Any]]:
    """Return what a finished run logged at each step."""
    return [row for row in read_json(output / "trainer_state.json")["log_history"] if "loss" in row]


PARTS = {
    "device": show_device,
    "rounding": show_rounding,
    "memory": show_memory,
    "resume": show_resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--shape", choices=["tiny", "7b"], default="7b")
    parser.add_argument("--work", type=Path, required=True, help="folder of models and runs")
    flags = parser.parse_args()
    PARTS[flags.part](flags)


if __name__ == "__main__":
    run(main)
