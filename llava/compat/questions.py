"""The original's helpers of the answering and scoring programs: shards of a list, options of a question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from llava.benchmarks.tasks import scienceqa, textvqa
from llava.infer.jobs.shards import shard_bounds

T = TypeVar("T")

all_options = ["A", "B", "C", "D"]


def split_list(lst: Sequence[T], n: int) -> list[Sequence[T]]:
    """Split a list into at most `n` chunks of ceil(len / n) items, the last one shorter."""
    bounds = (shard_bounds(len(lst), n, index) for index in range(n))
    return [lst[start:stop] for start, stop in bounds if start < stop]


def get_chunk(lst: Sequence[T], n: int, k: int) -> Sequence[T]:
    """Return chunk `k` of `split_list`.

    Raises:
        IndexError: There are fewer chunks.
    """
    return split_list(lst, n)[k]


def is_none(value: object) -> bool:
    """Return whether a cell of a table is empty: None, NaN, or one of these words."""
    if isinstance(value, str):
        return value.lower() in ("nan", "none")
    return value is None or (isinstance(value, float) and math.isnan(value))


def get_options(row: Mapping[str, T], options: Iterable[str]) -> list[T]:
    """Return a row's options, in order, up to the first that is empty."""
    found: list[T] = []
    for option in options:
        if is_none(row[option]):
            break
        found.append(row[option])
    return found


def prompt_processor(prompt: str) -> str:
    """Return the question in a TextVQA prompt, in lower case."""
    return textvqa.extract_question(prompt)


def convert_caps(results: Iterable[Mapping[str, str | int]]) -> list[dict[str, str | int]]:
    """Return answers in COCO's format for captions: {"image_id": number, "caption": text}."""
    return [{"image_id": int(row["question_id"]), "caption": row["text"]} for row in results]


def get_pred_idx(prediction: str, choices: Sequence[str], options: Sequence[str]) -> int:
    """Return the index of the letter `prediction` among those of `choices`; -1 if it is none of them."""
    return scienceqa.choice_index(prediction, choices, options)
