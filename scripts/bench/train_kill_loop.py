"""Kill a training run at random moments many times, and check that it ends with the same weights.

    python scripts/bench/train_kill_loop.py --kills 30
    python scripts/bench/train_kill_loop.py --kills 10 --kind full --processes 2 --zero 2

A script of `scripts/v1_5` trains the tiny model of `playground/demo` once in peace. Then it is started over
and over; at a random moment all its processes are killed at once as by a power cut, or the script is asked to
leave by SIGTERM. Whenever a run gets to its end, as the last one is let to, its weights must equal the
undisturbed run's bit for bit, and no folder may look like a checkpoint that is none. Exit code 1 when that
does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from llava.command import run
from llava.files import write_json
from llava.log import progress
from llava.model.loading.checkpoint import NON_LORA_FILES, PROJECTOR_FILES
from llava.model.loading.weights import read_tensors
from llava.train.checkpointing.verify import find_damage

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = {"lora": "finetune_task_lora", "projector": "pretrain", "full": "finetune_task"}
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", NON_LORA_FILES[-1], PROJECTOR_FILES[-1])


def write_data(root: Path, count: int) -> None:
    """Write `count` conversations about plain images."""
    from PIL import Image

    colours = ("red", "green", "blue", "white")
    for colour in colours:
        Image.new("RGB", (64, 48), colour).save(root / f"{colour}.png")
    rows = [
        {
            "id": str(number),
            "image": f"{colours[number % 4]}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhich colour?" + " Say it." * (number % 5)},
                {"from": "gpt", "value": colours[number % 4]},
            ],
        }
        for number in range(count)
    ]
    write_json(root / "data.json", rows)


class Loop:
    """Runs into one output folder, compared with an undisturbed run."""

    def __init__(self, root: Path, flags: argparse.Namespace) -> None:
        self.whole, self.output = root / "whole", root / "out"
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._random = random.Random(flags.seed)
        demo = REPO / "playground/demo"
        self._settings = {
            **{"MODEL": str(demo / "model"), "VISION_TOWER": str(demo / "tower"), "PYTHON": sys.executable},
            **{"DATA_PATH": str(root / "data.json"), "IMAGE_FOLDER": str(root), "CUDA_VISIBLE_DEVICES": ""},
            **{"NPROC": str(flags.processes), "PER_DEVICE_BATCH": "2", "GRADIENT_ACCUMULATION": "2"},
        }
        self._command = ["bash", str(REPO / f"scripts/v1_5/{SCRIPTS[flags.kind]}.sh")]
        self._command += [
            "--bf16",
            "False",
            "--num_train_epochs",
            "2",
            "--save_steps",
            "1",
            "--report_to",
            "none",
        ]
        self._command += ["--save_total_limit", "2", "--lora_dropout", "0.1", "--dataloader_num_workers", "1"]
        if flags.zero:
            self._command += ["--deepspeed", str(REPO / f"scripts/zero{flags.zero}.json")]

    def start(self, output: Path) -> subprocess.Popen[str]:
        """Start the script, writing to `output`."""
        environment = {**os.environ, **self._settings, "OUTPUT_DIR": str(output)}
        return subprocess.Popen(
            self._command, env=environment, cwd=REPO, text=True, errors="replace",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def disturb(self, longest_s: float) -> None:
        """Start or resume, wait for a random moment, kill or send SIGTERM, and check."""
        process = self.start(self.output)
        deadline = time.monotonic() + self._random.uniform(0.0, longest_s)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        how = "ended before the kill"
        if process.poll() is None:
            how = "asked to leave" if self._random.random() < 0.3 else "killed"
            if how == "killed":
                for each in _family(process.pid):
                    os.kill(each, signal.SIGKILL)
            else:
                process.terminate()
        error = self._said(process)
        self.counts[how] += 1
        if how == "ended before the kill" and process.returncode:
            self.faults.append(f"exited with {process.returncode}: {error[-500:]}")
        self.check()

    def finish(self) -> None:
        """Resume and run to the end."""
        process = self.start(self.output)
        error = self._said(process)
        if process.returncode:
            self.faults.append(f"the last run exited with {process.returncode}: {error[-500:]}")
        self.check()

    def _said(self, process: subprocess.Popen[str]) -> str:
        _, error = process.communicate()
        self.counts["began at a checkpoint"] += "resuming from" in error
        return error

    def check(self) -> None:
        """Check that every checkpoint is complete and a finished run has the undisturbed run's weights."""
        broken = [path.name for path in self.output.glob("checkpoint-*") if find_damage(path) is not None]
        if broken:
            self.faults.append(f"look like checkpoints: {broken}")
        if (self.output / "trainer_state.json").is_file():
            self.counts["complete"] += 1
            if not _same_weights(self.output, self.whole):
                self.faults.append("the weights differ from the undisturbed run's")
            shutil.rmtree(self.output)


def _family(process: int) -> list[int]:
    """Return a process and its descendants, which a launcher puts into sessions of their own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(each for child in children for each in _family(int(child)))]


def _same_weights(first: Path, second: Path) -> bool:
    names = [name for name in WEIGHTS if (first / name).is_file()]
    for name in names:
        ours, theirs = read_tensors(first / name), read_tensors(second / name)
        if set(ours) != set(theirs) or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return bool(names)


def main() -> None:
    """Kill as often as asked, then print the outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kind", choices=SCRIPTS, default="lora")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--zero", choices=("2", "3"), help="a DeepSpeed stage, for two processes or more")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), flags.samples)
        loop = Loop(Path(folder), flags)
        began = time.monotonic()
        process = loop.start(loop.whole)
        _, error = process.communicate()
        if process.returncode:
            sys.exit(f"the undisturbed run exited with {process.returncode}: {error[-2000:]}")
        longest_s = time.monotonic() - began
        for _ in progress(range(flags.kills), name="kills", total=flags.kills):
            loop.disturb(longest_s)
        loop.finish()
    told = ", ".join(f"{count} {name}" for name, count in sorted(loop.counts.items()))
    sys.stdout.write(f"{flags.kills} attempts: {told}; {len(loop.faults)} faults\n")
    if loop.faults:
        sys.exit("\n".join(loop.faults))


if __name__ == "__main__":
    run(main)
