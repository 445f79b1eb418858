"""Causal attention within each sample of a packed row, exact and without a mask in memory.

An attention implementation of transformers under the name `packed`. A row that comes with `segments` is cut
there; all else (padded batches, generation) goes to PyTorch's own attention as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface
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
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (B, heads, L, size) queries as (B, L, heads, size).

    Args:
        module: The attention layer.
        query: Beside `key` and `value`, which may have fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: Only for rows that are not packed.
        segments: Lengths of the samples in a packed row; they sum up to L, and B is 1.
        settings: dropout, scaling and so on, as transformers gives them.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # Not slices: each one's gradient would be as long as the row.
    parts = zip(*(each.split(list(segments), dim=2) for each in (query, key, value)), strict=True)
    said = [sdpa_attention_forward(module, *part, None, **settings)[0] for part in parts]
    return torch.cat(said, dim=1), None


def packed_mask(*shape: Any, attention_mask: torch.Tensor | None = None, **settings: Any) -> Any:
    """As PyTorch's own attention wants it, but none where nothing is padded: `segments` say it all there."""
    if attention_mask is None and settings["q_length"] == settings["kv_length"]:
        return None
    return sdpa_mask(*shape, attention_mask=attention_mask, **settings)


def enable_packing(config: Any) -> None:
    """Let a model of this config read packed rows without a mask; flash attention can as it is."""
    if config._attn_implementation == "sdpa":
        config._attn_implementation = PACKED


def segment_arguments(lengths: Sequence[int], implementation: str, device: torch.device) -> dict[str, Any]:
    """What a model's forward must be told about a packed row, by its attention implementation.

    Implementations not named here find the samples by their positions, which start from 0 in each, and make a
    mask of L x L.
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
