"""Use oneDNN in the linear layers and in the vision tower's attention of a model that answers on a CPU.

PyTorch multiplies float32 matrices with MKL. On an AMD processor with AVX-512, which MKL does not use there,
this took twice as long as with oneDNN. Without AVX-512 both took about the same; Intel's processors were not
measured (scripts/bench/README.md). In half precision PyTorch uses oneDNN itself where it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AttentionInterface, CLIPVisionModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava.model.attention_products import attend_by_onednn
from llava.model.onednn_product import HAS_ONEDNN, can_use_onednn, pack, product
from llava.model.overrides import find_change

_ATTENTION = "onednn"


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that uses oneDNN in float32 on a CPU, while gradients and autocast are off.

    Attributes:
        packed: The weight in oneDNN's own order, while `packed_weights` keeps it.
    """

    packed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of `input`, (..., in_features)."""
        if not can_use_onednn(input, self.weight):
            return super().forward(input)
        return product(input, self.weight if self.packed is None else self.packed, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Make a model on a CPU use oneDNN, on x86 processors and if PyTorch has it.

    A model that other code has changed stays as it is, because that code may depend on the layers' class.
    """
    if not HAS_ONEDNN or find_change(model) is not None:
        return
    for part in model.modules():
        if type(part) is nn.Linear and part.weight.device.type == "cpu":
            part.__class__ = OneDnnLinear
        if isinstance(part, CLIPVisionModel) and part.config._attn_implementation == "sdpa":
            part.config._attn_implementation = _ATTENTION


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Keep a copy of the weights in oneDNN's own order, unless it would fill half of the free memory.

    Products of many rows take a tenth less time, those of a few rows a third less (scripts/bench/README.md).
    The weights must not change meanwhile.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, OneDnnLinear) and layer.weight.dtype == torch.float32 and layer.weight.is_cpu
    ]
    if 2 * sum(layer.weight.nbytes for layer in layers) > psutil.virtual_memory().available:
        layers = []
    try:
        for layer in layers:
            layer.packed = pack(layer.weight)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def _attend_to_all(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from queries (B, H, L, E) to keys and values of the same shape; return (B, L, H, E)."""
    if attention_mask is not None or not can_use_onednn(query):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    each = (tensor.contiguous().split(1) for tensor in (query, key, value))
    attended = [attend_by_onednn(q, k, v, scaling, is_causal=False) for q, k, v in zip(*each, strict=True)]
    return torch.cat(attended).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attend_to_all)
