"""Keep the keys and values of many groups, each group in a slot of its own.

Shapes: S slots, H heads, C columns (a column holds one position), E features of a head, T new positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Owners of columns that do not belong to a single prompt.
SHARED, UNUSED = -1, -2


class SlotCache:
    """Keys and values of every layer, (S, H, C, E), and which prompt owns each column.

    Attributes:
        owners: (S, C). The index of the prompt that a column belongs to, `SHARED` for a prefix, or `UNUSED`.
        positions: (S, C). The position of each column in its prompt.
    """

    def __init__(self, device: torch.device) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.owners = torch.empty(0, 0, dtype=torch.long, device=device)
        self.positions = torch.empty(0, 0, dtype=torch.long, device=device)

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for this many slots and columns, with columns to spare if there are too few."""
        old_slots, old_columns = self.owners.shape
        columns = columns + columns // 8 + 32 if columns > old_columns else old_columns
        shape = max(slots, old_slots), columns
        self.owners, self.positions = _grow(self.owners, shape, UNUSED), _grow(self.positions, shape, 0)

    def layer(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a layer, made like `like`, (1, H, T, E), if there are none yet."""
        heads, features = like.shape[1], like.shape[3]
        (slots, columns), empty = self.owners.shape, like.new_empty(0, heads, 0, features)
        keys, values = self._layers.get(number, (empty, empty))
        shape = (slots, heads, columns, features)
        # Zeros, not free memory: a masked column that holds NaN would make the sum NaN.
        self._layers[number] = _grow(keys, shape, 0), _grow(values, shape, 0)
        return self._layers[number]

    def start_slot(self, slot: int, columns: int) -> None:
        """Mark the first columns of a slot as its prefix and all others as unused."""
        self.owners[slot, :columns] = SHARED
        self.owners[slot, columns:] = UNUSED
        self.positions[slot, :columns] = torch.arange(columns, device=self.positions.device)

    def arrange(self, order: Sequence[int]) -> None:
        """Put slot `order[0]` first, `order[1]` second, and so on. Slots that are not named are lost."""
        moves = [(new, old) for new, old in enumerate(order) if new != old]
        if moves:
            to, origin = map(list, zip(*moves, strict=True))
            for tensor in (
                self.owners,
                self.positions,
                *(part for pair in self._layers.values() for part in pair),
            ):
                tensor[to] = tensor[origin]


def _grow(tensor: torch.Tensor, shape: tuple[int, ...], fill: int) -> torch.Tensor:
    """Return the tensor, or a copy of this larger shape with `fill` in the new places."""
    if tensor.shape == shape:
        return tensor
    grown = tensor.new_full(shape, fill)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
