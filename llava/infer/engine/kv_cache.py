"""Keys and values of what the model has read, in buffers with room to spare.

transformers' own layer concatenates at every step, which copies the whole prefix for each new token.
G groups, H heads, C columns (positions read so far), E features of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A cache layer that writes new columns into its buffers and gives back views of them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None  # (G, H, room, E) each
        self._columns = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all columns, those in `key_states` and `value_states` (G, H, Q, E) added."""
        start, stop = self._columns, self._columns + key_states.shape[-2]
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            self._buffers = key_states, value_states  # room is made when more comes
            self._show(stop)
            return self.keys, self.values
        if stop > self._buffers[0].shape[-2]:
            grown = _room(key_states, stop), _room(value_states, stop)
            for old, new in zip(self._buffers, grown, strict=True):
                new[:, :, :start] = old[:, :, :start]
            self._buffers = grown
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self._show(stop)
        return self.keys, self.values

    def keep_first(self, columns: int) -> None:
        """Forget all columns but the first ones."""
        self._show(columns)

    def keep_groups(self, groups: torch.Tensor) -> None:
        """Forget all groups but those at the indices `groups`."""
        assert self._buffers is not None
        keys, values = self._buffers
        chosen = groups.to(keys.device)
        self._buffers = keys.index_select(0, chosen), values.index_select(0, chosen)
        self._show(self._columns)

    def _show(self, columns: int) -> None:
        assert self._buffers is not None
        self._columns = columns
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)


def preallocated_cache() -> Cache:
    """An empty cache of such layers."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def _room(states: torch.Tensor, columns: int) -> torch.Tensor:
    groups, heads, _, features = states.shape
    return states.new_empty(groups, heads, columns + columns // 4 + 64, features)
