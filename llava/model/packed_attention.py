"""Compute causal attention within each sample of a packed row, without an L x L mask.

Registered in transformers as the attention implementation `packed`. With `segments` a row is split into its
samples; without (padded batches, generation) PyTorch's scaled-dot-product attention is used as usual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: Sequence[int] | None = None,
    **settings: object,
) -> tuple[torch.Tensor, None]:
    """Attend from (B, heads, L, size) queries; return (B, L, heads, size) and None for the weights.

    Args:
        module: The attention layer.
        query: (B, heads, L, size).
        key: Like `query`, possibly with fewer heads.
        value: Like `key`.
        attention_mask: Used only without `segments`.
        segments: Lengths of the samples in a packed row; they sum to L, and B is 1.
        settings: dropout, scaling and so on, as transformers passes them.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # split() and not slices, whose gradients would each be as long as the row.
    split = (tensor.split(list(segments), dim=2) for tensor in (query, key, value))
    attended = [sdpa_attention_forward(module, *qkv, None, **settings)[0] for qkv in zip(*split, strict=True)]
    return torch.cat(attended, dim=1), None


def packed_mask(
    *shape: object, attention_mask: torch.Tensor | None = None, **settings: object
) -> torch.Tensor | None:
    """Return the attention mask, or None without padding, where causal attention needs no mask."""
    if attention_mask is None and settings["q_length"] == settings["kv_length"]:
        return None
    mask: torch.Tensor | None = sdpa_mask(*shape, attention_mask=attention_mask, **settings)
    return mask


def enable_packing(config: PretrainedConfig) -> None:
    """Let models of this config read packed rows without a mask. Flash attention already does."""
    if config._attn_implementation == "sdpa":
        config._attn_implementation = PACKED


def segment_arguments(lengths: Sequence[int], implementation: str, device: torch.device) -> dict[str, object]:
    """Return the arguments of a model's forward that describe a packed row to its attention implementation.

    For other implementations transformers detects the samples by their position ids, which restart at 0, and
    makes an L x L mask.
    """
    if implementation == PACKED:
        return {"segments": list(lengths)}
    if implementation.startswith("flash_attention"):
        ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        longest = max(lengths)
        return {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return {}


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, packed_mask)
