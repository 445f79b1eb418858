"""Pack the samples of a batch into rows without padding: pure functions over lengths and batches.

The samples of a row follow one another; the model keeps their attention apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collate import NOTES, Batch


def count_positions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, *, image_positions: int, max_length: int
) -> torch.Tensor:
    """Return (B,), the positions of each sample with its image, without padding, after truncation.

    Args:
        input_ids: (B, L), -200 for an image.
        attention_mask: (B, L), true or 1 where an id is not padding.
        image_positions: Positions of an image.
        max_length: Positions at which a sample is truncated.
    """
    positions = torch.where(input_ids == IMAGE_TOKEN_INDEX, image_positions, 1) * attention_mask
    return positions.sum(dim=1).clamp(max=max_length)


def assign_rows(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Assign samples to `count` rows of nearly equal length; return the sample indices of each row.

    Each sample, longest first, goes to the shortest row so far. With fewer samples than rows, some rows are
    empty.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        shortest = totals.index(min(totals))
        rows[shortest].append(index)
        totals[shortest] += lengths[index]
    return [sorted(row) for row in rows]


def count_rows(lengths: Sequence[int], budget: int) -> int:
    """Return how many rows keep each within `budget` positions, unless it holds a single sample.

    A budget of 0 means no limit: one row.
    """
    if budget == 0:
        return 1
    for count in range(max(1, -(-sum(lengths) // budget)), len(lengths)):
        if all(
            len(row) <= 1 or sum(lengths[index] for index in row) <= budget
            for row in assign_rows(lengths, count)
        ):
            return count
    return len(lengths)


def select_samples(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return some samples of a collated batch.

    With no indices, return sample 0 with all labels ignored: a rank with fewer rows than others must still
    join each forward pass.
    """
    if not indices:
        filler = select_samples({name: value for name, value in batch.items() if name != NOTES}, [0])
        return {**filler, "labels": torch.full_like(filler["labels"], IGNORE_INDEX)}
    return {
        name: value[list(indices)] if isinstance(value, torch.Tensor) else [value[index] for index in indices]
        for name, value in batch.items()
    }
