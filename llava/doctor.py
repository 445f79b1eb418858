"""`llava doctor`: what this machine has for LLaVA, what is missing, and the command that installs it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys

from llava.command import run

# Distribution -> (what it is for, the command that installs it).
REQUIRED = ("torch", "transformers", "peft", "accelerate", "safetensors", "sentencepiece", "pillow", "pandas")
OPTIONAL = {
    "deepspeed": ("ZeRO training on several GPUs", 'pip install -e ".[train]"'),
    "tensorboard": ("loss curves", 'pip install -e ".[train]"'),
    "matplotlib": ("curves of training runs, bars of results", 'pip install -e ".[plot]"'),
    "bitsandbytes": ("4- and 8-bit loading, QLoRA", 'pip install -e ".[quant]"'),
    "gradio": ("the web page, llava web", 'pip install -e ".[serve]"'),
    "nbclient": ("running the notebook", 'pip install -e ".[notebook]"'),
    "flash-attn": (
        "FlashAttention 2; SDPA is used without it",
        "pip install flash-attn --no-build-isolation",
    ),
}


def main() -> None:
    """Print the report; exit with 1 when something required is missing."""
    argparse.ArgumentParser(description=__doc__).parse_args()
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
    lines.append(f"hub           {_hub()}")
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


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "offline (HF_HUB_OFFLINE=1): only weights that are here already can be used"
    return os.environ.get("HF_ENDPOINT", "the default server") + "; weights are fetched when first needed"


if __name__ == "__main__":
    run(main)
