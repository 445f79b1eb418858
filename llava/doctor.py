"""`llava doctor`: what this machine has for LLaVA, what is missing, and the command that gets it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

from llava import benchmarks
from llava.command import run
from llava.layout.catalog import DATA_SETS
from llava.layout.folders import DATA_ROOT

# Distribution -> (what it is for, the command that installs it).
REQUIRED = ("torch", "transformers", "peft", "accelerate", "safetensors", "sentencepiece", "pillow", "pandas")
OPTIONAL = {
    "deepspeed": ("ZeRO training on several GPUs", 'pip install -e ".[train]"'),
    "tensorboard": ("loss curves", 'pip install -e ".[train]"'),
    "matplotlib": ("curves of training runs, bars of results", 'pip install -e ".[plot]"'),
    "bitsandbytes": ("4- and 8-bit loading, QLoRA", 'pip install -e ".[quant]"'),
    "openai": ("rounds of the data engine, judges", 'pip install -e ".[engine]"'),
    "gradio": ("the web page, llava web", 'pip install -e ".[serve]"'),
    "nbclient": ("running the notebook", 'pip install -e ".[notebook]"'),
    "flash-attn": (
        "FlashAttention 2; SDPA is used without it",
        "pip install flash-attn --no-build-isolation",
    ),
}

_MIX = ("mix665k", "coco", "gqa_images", "ocr_vqa", "textvqa_images", "vg")
# Command -> the data sets of `llava download` that it reads.
READS = {
    "pretrain.sh": ("pretrain",),
    "finetune.sh": _MIX,
    "finetune_lora.sh": _MIX,
    "finetune_lora_dataengine.sh": (*_MIX, "dataengine"),
    "llava eval": tuple(data.name for data in DATA_SETS if data.kind == "eval"),
}


def main() -> None:
    """Print the report; exit with 1 when something required is missing."""
    parser = argparse.ArgumentParser(prog="llava doctor", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA_ROOT, help=f"the data folder (default {DATA_ROOT})")
    flags = parser.parse_args()
    lines = [f"python        {platform.python_version()} ({sys.executable})"]
    missing = []
    for name in REQUIRED:
        version = _version(name)
        lines.append(f"{name:<13} {version or 'MISSING: pip install -e .'}")
        if version is None:
            missing.append(name)
    for name, (purpose, remedy) in OPTIONAL.items():
        lines.append(f"{name:<13} {_version(name) or f'not installed ({purpose}): {remedy}'}")
    if "torch" not in missing:
        lines += _devices()
    lines += [f"hub           {_hub()}", *_data(flags.data)]
    sys.stdout.write("\n".join(lines) + "\n")
    if missing:
        sys.exit(1)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    lines = [f"CUDA          {torch.version.cuda or 'not in this PyTorch'}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: train with --bf16 False --fp16 True"
        lines.append(f"gpu {index:<9} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    if not torch.cuda.device_count():
        lines.append(f"gpu           none; the CPU is used ({torch.get_num_threads()} threads)")
    elif not shutil.which("nvcc"):
        lines.append("nvcc          not found; only needed to build flash-attn and DeepSpeed's own kernels")
    return lines


def _data(root: Path) -> list[str]:
    """Return what is there of each data set, what each command lacks, and the one command that gets it."""
    lines, lacking = [f"data in       {root}"], []
    for data in DATA_SETS:
        state = "; ".join(remote.describe(root) for remote in data.remotes)
        is_short = benchmark_lacks(data.name, root) if data.kind == "eval" else data.lacking(root)
        if is_short:
            lacking.append(data)
        lines.append(
            f"  {data.name:<15}{state}{f' (by hand: {data.page})' if is_short and data.page else ''}"
        )
    for name in sorted(set(benchmarks.names()) - {data.name for data in DATA_SETS}):
        short = benchmark_lacks(name, root)
        lines.append(f"  {name:<15}" + (f"lacks {', '.join(short)}" if short else "complete"))
    names = [data.name for data in lacking]
    for command, read in READS.items():
        if short := [name for name in read if name in names]:
            lines.append(f"{command} lacks {', '.join(short)}")
    if to_get := [data.name for data in lacking if not data.page]:
        where = "" if root == DATA_ROOT else f" --root {shlex.quote(str(root))}"
        lines.append(f"get it by     llava download {' '.join(to_get)}{where}")
    return lines


def benchmark_lacks(name: str, root: Path) -> list[str]:
    """Return what a benchmark needs and `root` does not have, by the benchmark's own list."""
    benchmark = benchmarks.get(name)
    return benchmark.missing(root / "eval" / benchmark.folder)


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "offline (HF_HUB_OFFLINE=1): only weights that are here already can be used"
    return os.environ.get("HF_ENDPOINT", "the default server") + "; weights are fetched when first needed"


if __name__ == "__main__":
    run(main)
