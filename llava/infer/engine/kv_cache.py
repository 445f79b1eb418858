"""A key-value cache in preallocated buffers.

transformers' DynamicLayer concatenates at every step, which copies the whole prefix for each new token.
Shapes: G groups, H heads, C columns (positions read so far), Q new columns, E features of a head.
"""

from __future__ import annotations

import torch
from transformers import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A cache layer that writes new columns into its buffers and returns views of them."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None  # (G, H, capacity, E) each
        self._columns = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (G, H, Q, E); return those of all columns, (G, H, C, E)."""
        start, stop = self._columns, self._columns + key_states.shape[-2]
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            self._buffers = key_states, value_states  # spare capacity is allocated on the next call
            self._set_columns(stop)
            return self.keys, self.values
        if stop > self._buffers[0].shape[-2]:
            grown = _allocate(key_states, stop), _allocate(value_states, stop)
            for old, new in zip(self._buffers, grown, strict=True):
                new[:, :, :start] = old[:, :, :start]
            self._buffers = grown
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self._set_columns(stop)
        return self.keys, self.values

    def keep_first(self, columns: int) -> None:
        """Drop all but the first columns."""
        self._set_columns(columns)

    def keep_groups(self, groups: torch.Tensor) -> None:
        """Drop all groups but those at the indices `groups`, (groups kept,)."""
        assert self._buffers is not None
        keys, values = self._buffers
        chosen = groups.to(keys.device)
        self._buffers = keys.index_select(0, chosen), values.index_select(0, chosen)
        self._set_columns(self._columns)

    def _set_columns(self, columns: int) -> None:
        assert self._buffers is not None
        self._columns = columns
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)


def preallocated_cache() -> Cache:
    """Return an empty cache of preallocated layers."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def _allocate(states: torch.Tensor, columns: int) -> torch.Tensor:
    groups, heads, _, features = states.shape
    return states.new_empty(groups, heads, columns + columns // 4 + 64, features)
