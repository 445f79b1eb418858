"""Multiply float32 matrices by oneDNN on an x86 processor."""

from __future__ import annotations

import platform

import torch

_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")
HAS_ONEDNN = platform.machine().lower() in ("x86_64", "amd64") and all(
    hasattr(torch.ops.mkldnn, name) for name in _OPERATORS
)

# For how many rows oneDNN orders weights. Other numbers are as fast in this order as in one of their own.
_ROWS = 64


def can_use_onednn(*tensors: torch.Tensor) -> bool:
    """Return whether `product` may take these: float32 tensors on a CPU, without gradients or autocast."""
    return (
        HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(is_float32_on_cpu(tensor) for tensor in tensors)
    )


def is_float32_on_cpu(tensor: torch.Tensor) -> bool:
    """Return whether `product` can take the tensor."""
    return tensor.dtype == torch.float32 and tensor.is_cpu


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., out) of an input (..., in), a weight (out, in) and a bias (out).

    The weight or its transpose has no gaps in memory: else it takes a hundred times longer.
    """
    # What torch.compile calls on a CPU; the public aten.mkldnn_linear copies its input and output.
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Return a copy of a weight (out, in) in oneDNN's own order, for `product` only."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed
