"""Compare the peak memory that `llava plan` foresees with that of real steps.

Each kind of training runs two steps of a model of random weights in a process of its own. Measured is the
peak of the resident memory during the steps (on a GPU, of PyTorch's tensors), less what it was before the
model was loaded. A step of the same model with one layer comes first, so that libraries and what they keep
for each shape of a product are not counted; nor are pages of a weights file that nothing reads any more,
which quantised training keeps mapped. Prints planned / measured, and fails if one is off by more than 10 %.

    OMP_NUM_THREADS=1 python scripts/bench/memory_plan.py
    python scripts/bench/memory_plan.py --device cuda --shape 7b --only "LoRA, bf16"
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
from dataclasses import dataclass, replace
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
    "8 bits, bf16": (*LORA, "--bits", "8", "--bf16", "True"),
    "projector only": ("--tune_mm_mlp_adapter", "True"),
    "full": (),
    "full, 1 sample": ("--per_device_train_batch_size", "1"),
}
ALLOWED = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a language model and a vision tower, and of a batch.

    Attributes:
        language: Width, layers, heads, feed-forward width, vocabulary.
        vision: Width, layers, heads, feed-forward width, pixels of a side.
        samples: Samples of a batch.
        repeats: The longest text is so many times as long as the shortest.
        longest: Positions that samples are cut at.
    """

    language: tuple[int, int, int, int, int]
    vision: tuple[int, int, int, int, int]
    samples: int = 4
    repeats: int = 1
    longest: int = 512

    def with_one_layer(self) -> Shape:
        """Return this shape with a language model of one layer."""
        width, _, heads, inner, vocabulary = self.language
        return replace(self, language=(width, 1, heads, inner, vocabulary))


SHAPES = {
    "tiny": Shape((64, 2, 8, 176, 4000), (64, 3, 4, 128, 112)),
    "small": Shape((512, 4, 8, 1408, 4000), (64, 3, 4, 128, 112)),
    "7b": Shape((4096, 32, 32, 11008, 32000), (1024, 24, 16, 4096, 336), 16, 6, 2048),
}
SHAPES |= {f"{name}-1": shape.with_one_layer() for name, shape in SHAPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=["small", "7b"], default="small")
    parser.add_argument("--work", type=Path, help="folder of the models; default: a temporary one")
    parser.add_argument("--measure", choices=["plan", "measure"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        size = plan if flags.measure == "plan" else measure
        sys.stdout.write(f"{size(flags.work, flags.shape, flags.device, flags.only[0]):.0f}\n")
        return
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        flags.work = flags.work or Path(name)
        make_inputs(flags.work, f"{flags.shape}-1", flags.device)
        make_inputs(flags.work, flags.shape, flags.device)
        # Only now: what libraries say while they are loaded would cut the table in two.
        print("| training | planned MB | measured MB | planned / measured |\n| --- | --- | --- | --- |")
        for kind in flags.only:
            planned, measured = (_in_process(what, kind, flags) for what in ("plan", "measure"))
            ratio = planned / measured
            print(f"| {kind} | {planned / 1e6:.0f} | {measured / 1e6:.0f} | {ratio:.2f} |", flush=True)
            if abs(ratio - 1) > ALLOWED:
                wrong.append(kind)
    if wrong:
        sys.exit(f"off by more than a tenth: {', '.join(wrong)}")


def _in_process(what: str, kind: str, flags: argparse.Namespace) -> float:
    # All larger blocks are given back to the system when they are freed, so that the peak is of what is used.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(REPO)}
    command = [sys.executable, __file__, "--only", kind, "--measure", what, "--work", str(flags.work)]
    command += ["--device", flags.device, "--shape", flags.shape]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def make_inputs(work: Path, name: str, device: str) -> None:
    """Write a model, a vision tower, an image and training samples to `work / name`, unless they are there.

    Weights made on a GPU are bfloat16.
    """
    import shutil

    import torch
    from PIL import Image
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    folder, shape = work / name, SHAPES[name]
    if (folder / "data.json").exists():
        return
    width, layers, heads, inner, vocabulary = shape.language
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
    )
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    torch.set_default_dtype(torch.float32)
    shutil.copy(VOCABULARY, folder / "model")
    width, layers, heads, inner, side = shape.vision
    tower = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
    )
    tower.patch_size = 14
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder / "tower")
    Image.new("RGB", (120, 100), "red").save(folder / "image.png")
    records = []
    for number in range(8 * shape.samples):
        words = "a red dog is near the blue car " * 5 * (1 + number % shape.repeats)
        turns = [{"from": "human", "value": f"<image>\n{words}"}, {"from": "gpt", "value": words}]
        records.append({"id": str(number), "image": "image.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))


def arguments(folder: Path, shape: Shape, device: str, kind: str) -> list[str]:
    """Return the flags of a run of two steps."""
    paths = {"model_name_or_path": "model", "vision_tower": "tower", "data_path": "data.json"}
    given = [word for flag, name in paths.items() for word in (f"--{flag}", str(folder / name))]
    # As the training scripts do: as many layers as memory demands are recomputed.
    place = ("--use_cpu", "True") if device == "cpu" else ("--gradient_checkpointing", "True")
    return [
        *(*given, "--image_folder", str(folder), "--output_dir", str(folder / "out")),
        *("--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2", "--version", "v1"),
        *("--mm_use_im_patch_token", "False", "--per_device_train_batch_size", str(shape.samples)),
        *("--max_steps", "2", "--model_max_length", str(shape.longest), "--save_strategy", "no"),
        *("--report_to", "none", "--image_aspect_ratio", "pad", *place, *KINDS[kind]),
    ]


def plan(work: Path, name: str, device: str, kind: str) -> float:
    """Return the bytes that are planned, from the config alone."""
    from llava.train.arguments import parse_arguments
    from llava.train.planning.foresee import foresee_run

    given = parse_arguments([*arguments(work / name, SHAPES[name], device, kind), "--dry_run", "True"])
    return foresee_run(*given).plan.memory.peak


def measure(work: Path, name: str, device: str, kind: str) -> float:
    """Return the peak of the bytes in use during two steps."""
    _train(work, f"{name}-1", device, kind)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _in_use(device)
    return _train(work, name, device, kind) - before


def _train(work: Path, name: str, device: str, kind: str) -> float:
    from llava.train.arguments import parse_arguments
    from llava.train.llava_trainer import LLaVATrainer
    from llava.train.planning.startup import plan_run
    from llava.train.train import assemble

    made = assemble(*parse_arguments(arguments(work / name, SHAPES[name], device, kind)))
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
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return _in_use(device, peak=True)


def _page_out_weights() -> None:
    """Have the system forget the pages of mapped weights files; those in use are read again."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def _in_use(device: str, *, peak: bool = False) -> float:
    """Return the bytes that this process has in use, or the most since the peak was reset."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    run(main)
