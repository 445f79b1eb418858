"""Measure training against ms-swift and LLaMA-Factory, by samples a device and by their lengths.

All programs fine-tune one model of random weights with LoRA on the same records, in turn, each in a process
and an environment of its own. A run makes all its steps on one batch, so that nothing depends on how programs
shuffle. First losses must agree: an adapter's output is 0 then, whatever dropout draws. All recompute every
layer in the backward pass, except the last of ours. The projector is frozen; images have the tower's size.
Printed are processor seconds a step, the first not counted, and the peak of resident memory.

    OMP_NUM_THREADS=1 python scripts/bench/train_peers.py --swift swift-env/bin/python \
        --factory factory-env/bin/python
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from eval_speed import WORDS, Sizes, build, print_row
from PIL import Image
from train_speed import LENGTHS, LONGEST

from llava.command import run
from llava.errors import SettingsError
from llava.exchange.hf_folder import export_hf
from llava.files import read_json, write_json
from llava.tokenizer import load_tokenizer

REPO = Path(__file__).resolve().parents[2]
VOCABULARY = REPO / "playground/demo/model"
# With 32,000 tokens the output layer would have most of the weights; in a 7B model it has 2 %.
SIZES = Sizes(language=(384, 3, 6, 1024), vision=(64, 3, 1, 256), vocabulary=704)
KINDS = {"short": LENGTHS[:10], "long": LENGTHS[10:], "mix": LENGTHS}
SYSTEM_IDS = 30  # of a record's ids, those of the system prompt and the roles
PATCHES = 576
CLOSE = 1e-3  # an exported model has one more token in the softmax, `<image>`
NAMES = ("exact", "fast", "fast, nothing recomputed", "ms-swift", "LLaMA-Factory")
COLUMNS = (
    *("records", "samples a device", "positions a sample", "supervised", "padding"),
    *(f"{name}: s (GB)" for name in NAMES),
    *(f"{name} / fast" for name in NAMES if name != "fast"),
    "first losses differ by",
)
# What the three programs call alike, as it is transformers' name.
COMMON = {
    **{"use_cpu": True, "learning_rate": 1e-4, "optim": "adamw_torch", "dataloader_num_workers": 0},
    **{"gradient_checkpointing": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
}


@dataclass(frozen=True, slots=True)
class Program:
    """A way to train: its environment's Python, the name that `train_watch` knows, its own flags."""

    python: str
    name: str
    flags: dict[str, Any]

    def is_installed(self) -> bool:
        package = {"llava": "llava", "swift": "swift", "factory": "llamafactory"}[self.name]
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
        return bool(self.python) and subprocess.run([self.python, "-c", code]).returncode == 0


def programs(flags: argparse.Namespace, work: Path) -> dict[str, Program]:
    """Return the programs by their names in the table."""
    lora = {"lora_alpha": 2 * flags.rank, "lora_dropout": 0.05}
    ours = {
        **{"model_name_or_path": work / "llava", "vision_tower": work / "tower", "version": "v1"},
        **{"data_path": work / "ours.json", "image_folder": work, "image_aspect_ratio": "pad"},
        **{"mm_vision_select_layer": -2, "mm_projector_type": "mlp2x_gelu", "freeze_mm_mlp_adapter": True},
        **{"mm_use_im_patch_token": False, "model_max_length": LONGEST},
        **{"lora_enable": True, "lora_r": flags.rank, **lora},
    }
    swift = {
        **{"model": work / "hf", "model_type": "llava1_5_hf", "template": "as_ours"},
        **{"dataset": work / "theirs.json", "max_length": LONGEST, "torch_dtype": "float32"},
        **{"tuner_type": "lora", "lora_rank": flags.rank, **lora, "target_modules": "all-linear"},
    }
    factory = {
        **{"stage": "sft", "do_train": True, "model_name_or_path": work / "hf", "template": "llava"},
        **{"dataset_dir": work, "dataset": "peers", "cutoff_len": LONGEST},
        **{"finetuning_type": "lora", "lora_rank": flags.rank, **lora, "lora_target": "all"},
    }
    here = sys.executable
    return {
        "exact": Program(here, "llava", {**ours, "recipe": "exact"}),
        "fast": Program(here, "llava", {**ours, "recipe": "fast", "checkpoint_layers": "all"}),
        "ms-swift": Program(flags.swift, "swift", swift),
        "LLaMA-Factory": Program(flags.factory, "factory", factory),
        "fast, nothing recomputed": Program(
            here, "llava", {**ours, "recipe": "fast", "checkpoint_layers": 0}
        ),
    }


def make_model(work: Path) -> None:
    """Write the model in the original's format to `llava` and in transformers' to `hf`."""
    model = build(SIZES, "cpu", torch.float32, work / "tower").model
    model.save_pretrained(work / "llava")
    for file in VOCABULARY.glob("*token*"):
        shutil.copy(file, work / "llava")
    export_hf(str(work / "llava"), None, work / "hf", dtype="float32", conv_mode="v1")
    Image.effect_noise((336, 336), 60).convert("RGB").save(work / "image.png")


def lengths_of(kind: str, count: int) -> list[tuple[int, int]]:
    """Return each record's ids, and how many of them are supervised: evenly from the kind's lengths."""
    found = KINDS[kind]
    return [found[int((place + 0.5) * len(found) / count)] for place in range(count)]


def write_records(work: Path, kind: str, count: int) -> None:
    """Write the same records for all programs: random words, of the kind's lengths."""
    tokenizer, draw = load_tokenizer(VOCABULARY), random.Random(0)
    costs = {word: len(tokenizer(word).input_ids) - 1 for word in WORDS.split()}

    def text(ids: int) -> str:
        words = []
        while ids > 0:
            words.append(draw.choice([word for word, cost in costs.items() if cost <= ids]))
            ids -= costs[words[-1]]
        return " ".join(words)

    ours, theirs = [], []
    for number, (ids, learned) in enumerate(lengths_of(kind, count)):
        turns = [
            {"from": "human", "value": f"<image>\n{text(ids - learned - SYSTEM_IDS)}"},
            {"from": "gpt", "value": text(learned - 1)},
        ]
        ours.append({"id": str(number), "image": "image.png", "conversations": turns})
        theirs.append({"images": [str(work / "image.png")], "conversations": turns})
    write_json(work / "ours.json", ours)
    write_json(work / "theirs.json", theirs)
    columns = {"messages": "conversations", "images": "images"}
    listed = {"file_name": "theirs.json", "formatting": "sharegpt", "columns": columns}
    write_json(work / "dataset_info.json", {"peers": listed})


def train(program: Program, work: Path, count: int, steps: int) -> dict[str, Any]:
    """Train some steps on batches of so many samples; return what `train_watch` notes."""
    notes, output = work / "notes.json", work / "out"
    shutil.rmtree(output, ignore_errors=True)
    notes.unlink(missing_ok=True)
    given = {**COMMON, "per_device_train_batch_size": count, "max_steps": steps, "output_dir": output}
    command = [program.python, str(Path(__file__).with_name("train_watch.py")), str(notes), program.name]
    for flag, value in {**given, **program.flags}.items():
        command += [f"--{flag}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    if done.returncode or not notes.exists():
        raise SettingsError(f"{program.name} failed:\n{done.stderr[-4000:]}", code="program-failed")
    found: dict[str, Any] = read_json(notes)
    return found


def compare(
    installed: dict[str, Program], work: Path, kind: str, count: int, flags: argparse.Namespace
) -> bool:
    """Measure one kind of records in batches of one size; print its line, return whether losses agree."""
    write_records(work, kind, count)
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = {}
    losses: dict[str, float] = {}
    for _ in range(flags.rounds):
        for name, program in installed.items():
            notes = train(program, work, count, flags.steps)
            seconds[name] += notes["seconds"]
            peaks[name], losses[name] = notes["peak"], notes["losses"][0]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    positions = [ids - 1 + PATCHES for ids, _ in lengths_of(kind, count)]
    mean = sum(positions) / count
    off = max(abs(loss / losses["exact"] - 1) for loss in losses.values())
    sys.stderr.write(f"{kind}, {count} samples: first losses {losses}\n")
    learned = sum(each for _, each in lengths_of(kind, count)) / sum(positions)
    cells = [kind, str(count), f"{mean:.0f}", f"{learned:.0%}", f"{max(positions) / mean:.2f}"]
    cells += [
        f"{medians[name]:.2f} ({peaks[name] / 1e9:.2f})" if name in medians else "not installed"
        for name in NAMES
    ]
    cells += [
        f"{medians[name] / medians['fast']:.2f}" if name in medians else "-"
        for name in NAMES
        if name != "fast"
    ]
    print_row(*cells, f"{off:.0e}")
    return off <= CLOSE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swift", default="", help="the Python of an environment with ms-swift")
    parser.add_argument("--factory", default="", help="the Python of an environment with LLaMA-Factory")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["short", "long"])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4, 16], help="samples a device")
    parser.add_argument("--rank", type=int, default=128, help="of the adapter")
    parser.add_argument("--steps", type=int, default=3, help="of a run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=1, help="of which the medians are shown")
    flags = parser.parse_args()
    print_row(*COLUMNS)
    print_row(*["---"] * len(COLUMNS))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_model(work)
        known = programs(flags, work)
        installed = {name: program for name, program in known.items() if program.is_installed()}
        agree = [
            compare(installed, work, kind, count, flags) for kind in flags.kinds for count in flags.batches
        ]
    if not all(agree):
        sys.exit("the first losses differ")


if __name__ == "__main__":
    run(main)
