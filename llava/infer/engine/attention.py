"""Attend in a pass of the engine, by the attention implementation `slots` of transformers.

In a pass, all layers but attention read one row of positions without any padding. Attention sees the slots of
a `SlotCache`: what is in them, and in which of them each position of the row belongs.

Shapes: T positions of the pass, S slots, Q the most positions of a slot, C columns, H heads, E features of a
head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava.infer.engine.kv_cache import SHARED, SlotCache

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention

_SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class PrefixPass:
    """A pass of whole prefixes of these lengths, for the slots from `first` on. It needs no mask."""

    cache: SlotCache
    first: int
    lengths: Sequence[int]

    def attend(
        self,
        module: LlamaAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **settings: object,
    ) -> torch.Tensor:
        """Keep keys and values (1, H, T, E), attend within each prefix, and return (1, T, H, E)."""
        keys, values = self.cache.layer(module.layer_idx, key)
        split = (tensor.split(list(self.lengths), dim=2) for tensor in (query, key, value))
        attended = []
        for slot, (q, k, v) in enumerate(zip(*split, strict=True), start=self.first):
            keys[slot, :, : k.shape[2]], values[slot, :, : v.shape[2]] = k[0], v[0]
            attended.append(sdpa_attention_forward(module, q, k, v, None, **settings)[0])
        return torch.cat(attended, dim=1)


class RestPass:
    """A pass of positions that follow the prefixes. A prompt sees its prefix and itself."""

    def __init__(
        self, cache: SlotCache, slots: slice, width: int, new: torch.Tensor, dtype: torch.dtype
    ) -> None:
        """Describe a pass over these slots.

        Args:
            cache: The cache.
            slots: The slots of the pass.
            width: How many of their columns are in use, C.
            new: (5, T). Of each position of the pass: its slot, counted from the first of `slots`; how many
                positions of the pass are before it in its slot; the column that it gets; the index of its
                prompt; and its position in the prompt.
            dtype: The model's precision.
        """
        self._numbers, self._places, self._columns, owners, positions = new
        self._cache, self._slots, self._width = cache, slots, width
        self._shape = slots.stop - slots.start, int(self._places.max()) + 1  # (S, Q)
        cache.owners[slots][self._numbers, self._columns] = owners
        cache.positions[slots][self._numbers, self._columns] = positions
        self._mask = self._make_mask(owners, positions, dtype)

    def attend(
        self,
        module: LlamaAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **settings: object,
    ) -> torch.Tensor:
        """Keep keys and values (1, H, T, E), attend within the slots, and return (1, T, H, E)."""
        device = query.device
        numbers, places, columns = (each.to(device) for each in (self._numbers, self._places, self._columns))
        keys, values = (states[self._slots] for states in self._cache.layer(module.layer_idx, key))
        keys[numbers, :, columns] = key[0].transpose(0, 1)
        values[numbers, :, columns] = value[0].transpose(0, 1)
        slots, longest = self._shape
        padded = query.new_zeros(slots, query.shape[1], longest, query.shape[3])
        padded[numbers, :, places] = query[0].transpose(0, 1)
        seen = (states[:, :, : self._width] for states in (keys, values))
        mask = None if self._mask is None else self._mask.to(device)
        attended, _ = sdpa_attention_forward(module, padded, *seen, mask, **settings)  # (S, Q, H, E)
        return attended[numbers, places][None]

    def _make_mask(
        self, owners: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return what to add to the scores, (S, 1, Q, C); None if every position sees every column."""
        # What pads a slot sees its first column: attention to nothing gives NaN.
        asking, at = owners.new_full(self._shape, SHARED), positions.new_zeros(self._shape)
        asking[self._numbers, self._places], at[self._numbers, self._places] = owners, positions
        owned = self._cache.owners[self._slots, None, : self._width]
        visible = (owned == SHARED) | (owned == asking[:, :, None])
        visible &= self._cache.positions[self._slots, None, : self._width] <= at[:, :, None]
        if visible.all():
            return None
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@contextmanager
def attending_in_slots(config: PretrainedConfig) -> Iterator[None]:
    """Let a model of this config attend as the argument `slot_pass` of its forward says."""
    usual = config._attn_implementation
    config._attn_implementation = _SLOTS
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: LlamaAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slot_pass: PrefixPass | RestPass,
    **settings: object,
) -> tuple[torch.Tensor, None]:
    return slot_pass.attend(module, query, key, value, **settings), None


AttentionInterface.register(_SLOTS, _attend)
