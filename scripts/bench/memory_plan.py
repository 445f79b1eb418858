"""Compare the peak memory that `llava plan` foresees with that of real steps, on a CPU.

Each kind of training runs two steps of a small model of random weights in a process of its own. Measured is
the peak of the resident memory during the steps, less what it was before the model was loaded. A step of a
tiny model comes first, so that libraries and their buffers are not counted; nor are pages of a weights file
that nothing reads any more, which quantised training keeps mapped. Prints planned / measured, and fails if
one is off by more than a tenth.

    OMP_NUM_THREADS=1 python scripts/bench/memory_plan.py
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llava.command import run

REPO = Path(__file__).resolve().parents[2]
MADV_PAGEOUT = 21  # <linux/mman.h>, Linux 5.4
VOCABULARY = REPO / "playground/demo/model/tokenizer.model"
LORA = ("--lora_enable", "True", "--lora_r", "64", "--lora_alpha", "128")
KINDS: dict[str, tuple[str, ...]] = {
    "LoRA": LORA,
    "LoRA, 2 batches a step": (*LORA, "--gradient_accumulation_steps", "2"),
    "LoRA, bf16": (*LORA, "--bf16", "True"),
    "LoRA, recomputed": (*LORA, "--gradient_checkpointing", "True", "--checkpoint_layers", "all"),
    "QLoRA": (*LORA, "--bits", "4"),
    "QLoRA, bf16": (*LORA, "--bits", "4", "--bf16", "True"),
    "projector only": ("--tune_mm_mlp_adapter", "True"),
    "full": (),
    "full, 1 sample": ("--per_device_train_batch_size", "1"),
}
ALLOWED = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        what, folder = flags.measure
        size = plan if what == "plan" else measure
        sys.stdout.write(f"{size(Path(folder), KINDS[flags.only]):.0f}\n")
        return
    print("| training | planned MB | measured MB | planned / measured |\n| --- | --- | --- | --- |")
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        for kind in KINDS:
            if flags.only not in kind:
                continue
            planned, measured = (_in_process(what, name, kind) for what in ("plan", "measure"))
            ratio = planned / measured
            print(f"| {kind} | {planned / 1e6:.0f} | {measured / 1e6:.0f} | {ratio:.2f} |", flush=True)
            if abs(ratio - 1) > ALLOWED:
                wrong.append(kind)
    if wrong:
        sys.exit(f"off by more than a tenth: {', '.join(wrong)}")


def _in_process(what: str, folder: str, kind: str) -> float:
    # All larger blocks are given back to the system when they are freed, so that the peak is of what is used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(REPO)}
    command = [sys.executable, __file__, "--only", kind, "--measure", what, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def make_inputs(folder: Path) -> None:
    """Write a small and a tiny model, a vision tower, an image and training samples."""
    import shutil

    from PIL import Image
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    for name, width, layers, vocabulary in (("small", 512, 4, 4000), ("tiny", 64, 2, 4000)):
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=8,
            vocab_size=vocabulary,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        shutil.copy(VOCABULARY, folder / name)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=112
    )
    tower.patch_size = 14
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    size = {"height": 112, "width": 112}
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=size).save_pretrained(folder / "tower")
    Image.new("RGB", (120, 100), "red").save(folder / "image.png")
    words = "a red dog is near the blue car " * 5
    turns = [{"from": "human", "value": f"<image>\n{words}"}, {"from": "gpt", "value": words}]
    records = [{"id": str(number), "image": "image.png", "conversations": turns} for number in range(32)]
    (folder / "data.json").write_text(json.dumps(records))


def arguments(folder: Path, model: str, kind: tuple[str, ...]) -> list[str]:
    """Return the flags of a run of two steps."""
    paths = {"model_name_or_path": model, "vision_tower": "tower", "data_path": "data.json"}
    given = [word for flag, name in paths.items() for word in (f"--{flag}", str(folder / name))]
    return [
        *(*given, "--image_folder", str(folder), "--output_dir", str(folder / f"out-{model}")),
        *("--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2", "--version", "v1"),
        *("--mm_use_im_patch_token", "False", "--per_device_train_batch_size", "4", "--max_steps", "2"),
        *("--model_max_length", "512", "--save_strategy", "no", "--report_to", "none", "--use_cpu", "True"),
        *("--image_aspect_ratio", "pad", *kind),
    ]


def plan(folder: Path, kind: tuple[str, ...]) -> float:
    """Return the bytes that are planned, from the config alone."""
    from llava.train.arguments import parse_arguments
    from llava.train.planning.foresee import foresee_run

    given = parse_arguments([*arguments(folder, "small", kind), "--dry_run", "True"])
    return foresee_run(*given).plan.memory.peak


def measure(folder: Path, kind: tuple[str, ...]) -> float:
    """Return the peak of the resident bytes during two steps."""
    _train(folder, "tiny", kind)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    return _train(folder, "small", kind) - before


def _train(folder: Path, model: str, kind: tuple[str, ...]) -> float:
    from llava.train.arguments import parse_arguments
    from llava.train.llava_trainer import LLaVATrainer
    from llava.train.planning.startup import plan_run
    from llava.train.train import assemble

    made = assemble(*parse_arguments(arguments(folder, model, kind)))
    trainer = LLaVATrainer(
        made.model,
        made.training_args,
        tokenizer=made.tokenizer,
        train_dataset=made.dataset,
        data_collator=made.collator,
    )
    trainer.set_recomputed_layers(plan_run(trainer, made.dataset).recomputed)
    gc.collect()
    _page_out_weights()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    trainer.train()
    return _resident("VmHWM")


def _page_out_weights() -> None:
    """Have the system forget the pages of mapped weights files; those in use are read again."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    run(main)
