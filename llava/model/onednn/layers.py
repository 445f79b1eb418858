"""Use oneDNN in a model's linear layers and in the attention of its vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AttentionInterface, CLIPVisionModel, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava.model.onednn.attention import attend_by_onednn
from llava.model.onednn.product import HAS_ONEDNN, can_use_onednn, is_float32_on_cpu, pack, product
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
        packed = self.packed  # read once: another thread may let go of it
        return product(input, self.weight if packed is None else packed, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Make a model on a CPU use oneDNN, on x86 processors and if PyTorch has it.

    A model that other code has changed stays as it is, because that code may depend on the layers' class.
    """
    if not HAS_ONEDNN or find_change(model) is not None:
        return
    for part in model.modules():
        if type(part) is nn.Linear and part.weight.is_cpu:
            part.__class__ = OneDnnLinear
        if isinstance(part, CLIPVisionModel) and part.device.type == "cpu":
            _switch_attention(part.config)


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Keep a copy of the weights in oneDNN's own order, unless it would fill a quarter of the free memory.

    Products of many rows take 5 to 8 % less time, those of up to 32 rows 20 to 35 % (scripts/bench).
    The weights must not change meanwhile; those of a model that other code has changed are not copied.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, OneDnnLinear) and is_float32_on_cpu(layer.weight)
    ]
    size = sum(layer.weight.nbytes for layer in layers)
    if 4 * size > psutil.virtual_memory().available or find_change(model) is not None:
        layers = []
    try:
        for layer in layers:
            layer.packed = pack(layer.weight)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def _switch_attention(config: PretrainedConfig) -> None:
    """Let a vision model with this config attend by oneDNN if it uses PyTorch's attention."""
    if config._attn_implementation == "sdpa":
        config._attn_implementation = _ATTENTION


def _attend_as_sdpa(
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


AttentionInterface.register(_ATTENTION, _attend_as_sdpa)
