"""Keep keys and values in rows: one cache with a row for each prefix, and one with a row for each prompt.

Shapes: R rows, H heads, C columns (a column holds one position), E features of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class RowCache:
    """Keys and values of every layer, (R, H, C, E). Which columns of a row are in use, the caller keeps."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shape = 0, 0

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for this many rows and columns, and some to spare, keeping what is in them.

        If there are too few of one, the other is cut to what is needed now: many rows and long ones seldom
        come at the same time.
        """
        old_rows, old_columns = self._shape
        if rows > old_rows or columns > old_columns:
            self._shape = rows + rows // 8, columns + columns // 8 + 32
            for number, (keys, values) in self._layers.items():
                self._layers[number] = _resize(keys, self._shape), _resize(values, self._shape)

    def layer(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a layer, made like `like`, (1, H, any, E), if there are none yet."""
        if number not in self._layers:
            self._layers[number] = _resize(like[:0], self._shape), _resize(like[:0], self._shape)
        return self._layers[number]

    def arrange(self, order: Sequence[int]) -> None:
        """Put row `order[0]` first, `order[1]` second, and so on. Rows that are not named are lost."""
        moves = [(new, old) for new, old in enumerate(order) if new != old]
        if moves:
            to, origin = map(list, zip(*moves, strict=True))
            for pair in self._layers.values():
                for tensor in pair:
                    tensor[to] = tensor[origin]


def _resize(states: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return a copy of states (R, H, C, E) with so many rows and columns, and zeros in the new ones."""
    rows, columns = shape
    # Zeros, not free memory: a column that is not to be seen but holds NaN would make a sum NaN.
    resized = states.new_zeros(rows, states.shape[1], columns, states.shape[3])
    kept = states[:rows, :, :columns]
    resized[: len(kept), :, : kept.shape[2]] = kept
    return resized
