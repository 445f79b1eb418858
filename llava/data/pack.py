"""How the samples of a batch are dealt to rows without padding: pure functions over lengths and batches.

A row's samples stand one behind another; how they are kept apart there is the model's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collate import NOTES


def count_positions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, *, image_positions: int, max_length: int
) -> torch.Tensor:
    """(B,) positions of each row of a batch with images in their place and the end cut off, padding aside.

    Args:
        input_ids: (B, L), -200 for an image.
        attention_mask: (B, L), true or 1 where an id counts.
        image_positions: Positions one image takes.
        max_length: Positions after which a row is cut.
    """
    taken = torch.where(input_ids == IMAGE_TOKEN_INDEX, image_positions, 1) * attention_mask
    return taken.sum(dim=1).clamp(max=max_length)


def deal(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The places of all samples in `count` rows of nearly equal length.

    The longest first, each to the shortest row so far. Rows beyond the number of samples are empty.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        shortest = totals.index(min(totals))
        rows[shortest].append(place)
        totals[shortest] += lengths[place]
    return [sorted(row) for row in rows]


def count_rows(lengths: Sequence[int], budget: int) -> int:
    """How many rows `deal` must make for none to be longer than `budget`, unless it is of a single sample.

    A budget of 0 is none: one row.
    """
    if budget == 0:
        return 1
    for count in range(max(1, -(-sum(lengths) // budget)), len(lengths)):
        if all(
            len(row) <= 1 or sum(lengths[place] for place in row) <= budget for row in deal(lengths, count)
        ):
            return count
    return len(lengths)


def take(batch: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Some samples of a collated batch; of no sample at all, the first with nothing in it to learn.

    The latter is for a process that has fewer rows than others, but must go along with them.
    """
    if not places:
        filler = take({name: each for name, each in batch.items() if name != NOTES}, [0])
        return {**filler, "labels": torch.full_like(filler["labels"], IGNORE_INDEX)}
    return {
        name: each[list(places)] if isinstance(each, torch.Tensor) else [each[place] for place in places]
        for name, each in batch.items()
    }
