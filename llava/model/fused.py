"""Replace LLaMA's norms, feed-forward layers and rotary embeddings by Liger's fused GPU kernels.

transformers' own `--use_liger_kernel` looks a model up by its type and does not know ours. Liger's fused loss
is not used: with logits computed only at supervised positions there is little left to fuse.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch


def find_fusing_obstacle() -> str | None:
    """Return why the kernels cannot be used on this machine, or None if they can."""
    if not torch.cuda.is_available():
        return "its kernels need an NVIDIA GPU"
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed; pip install liger-kernel"
    return None


def fuse_layers(model: torch.nn.Module) -> None:
    """Make the layers of a loaded LLaMA, with or without PEFT's wrapper, use Liger's kernels."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from peft import PeftModel

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=base)
