"""Draw samples of records by seed: base data to replay, and arms of equal size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from random import Random

from llava.schema import JsonObject


def draw_evenly(strata: Sequence[str], count: int, seed: int) -> frozenset[int]:
    """Return `count` indices of `strata`, all if there are fewer; each stratum keeps its share.

    The indices are ordered by stratum, at random within each, and every n-th is taken (systematic sampling).
    With one stratum it is a random sample.
    """
    if count >= len(strata):
        return frozenset(range(len(strata)))
    random = Random(seed)
    order = list(range(len(strata)))
    random.shuffle(order)
    order.sort(key=strata.__getitem__)
    step, start = len(order) / count if count else 0.0, random.random()
    return frozenset(order[int((index + start) * step)] for index in range(count))


def stratum_of(row: JsonObject) -> str:
    """Return what a training record is sampled with: its question type, else its image's first folder."""
    kind, image = row.get("type"), row.get("image")
    if isinstance(kind, str) and kind:
        return kind
    return PurePosixPath(image).parts[0] if isinstance(image, str) and image else "text only"
