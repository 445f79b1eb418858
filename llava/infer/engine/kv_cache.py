"""Keep keys and values in rows: one cache with a row for each prefix, and one with a row for each prompt.

Shapes: R rows, H heads, C columns (a column holds one position), E features of a head, T new positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class RowCache:
    """Keys and values of every layer, (R, H, C, E). What is in use of each row, its user knows."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shape = 0, 0

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for this many rows and columns, with columns to spare if there are too few."""
        old_rows, old_columns = self._shape
        columns = columns + columns // 8 + 32 if columns > old_columns else old_columns
        self._shape = max(rows, old_rows), columns

    def layer(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a layer, made like `like`, (1, H, T, E), if there are none yet."""
        heads, features = like.shape[1], like.shape[3]
        (rows, columns), empty = self._shape, like.new_empty(0, heads, 0, features)
        keys, values = self._layers.get(number, (empty, empty))
        shape = (rows, heads, columns, features)
        self._layers[number] = _grow(keys, shape), _grow(values, shape)
        return self._layers[number]

    def arrange(self, order: Sequence[int]) -> None:
        """Put row `order[0]` first, `order[1]` second, and so on. Rows that are not named are lost."""
        moves = [(new, old) for new, old in enumerate(order) if new != old]
        if moves:
            to, origin = map(list, zip(*moves, strict=True))
            for pair in self._layers.values():
                for tensor in pair:
                    tensor[to] = tensor[origin]


def _grow(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor, or a copy of this larger shape with zeros in the new places."""
    if tensor.shape == shape:
        return tensor
    # Zeros, not free memory: a column that is not to be seen but holds NaN would make a sum NaN.
    grown = tensor.new_zeros(shape)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
