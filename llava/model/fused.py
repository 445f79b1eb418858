"""Liger's fused kernels for LLaMA's norms, feed-forward parts and rotary positions; for GPUs.

transformers' own `--use_liger_kernel` goes by the name of the model's type and finds none for ours. Losses
are not taken from there: logits only where they are learned from leave little to fuse.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch


def find_fusing_obstacle() -> str | None:
    """Why the kernels cannot be used here, None if they can."""
    if not torch.cuda.is_available():
        return "its kernels need an NVIDIA GPU"
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed; pip install liger-kernel"
    return None


def fuse_layers(model: Any) -> None:
    """Let the layers of a loaded LLaMA compute by Liger's kernels, in PEFT's wrapper or not."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=base)
