"""Ask a second reader, who has the image or its description, whether a record's answer is the only right one.

A wrong letter that the answer repeats, or a second right option in other words, no rule about texts can see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from llava.schema import JsonObject


@dataclass(frozen=True, slots=True)
class Reading:
    """A question to read an image for: its options, and the row of requests.jsonl (image, image_info)."""

    question: str
    options: tuple[str, ...]
    request: JsonObject


Answerer = Callable[[Sequence[Reading]], list[frozenset[int] | None]]
"""From questions to the indices of the right options of each; None where the reader gave no answer."""


def judge_reading(reading: Reading, correct: int, found: frozenset[int] | None) -> tuple[str, str] | None:
    """Compare a record's answer with what a second model says; return the broken rule and how, or None.

    The rules are `unchecked` (the second model gave no answer), `two_right_options` (it says that the
    record's option is right and another one, too) and `inconsistent` (it says that only others are right,
    or none).

    Args:
        reading: The question and its options.
        correct: The index of the option that the record says is right.
        found: The indices of all options that the second model says are right; None without an answer.
    """
    if found is None:
        return "unchecked", "the second reader gave no answer"
    if found == {correct}:
        return None
    said = (
        ", ".join(f"{ascii_uppercase[place]} {reading.options[place]}" for place in sorted(found)) or "none"
    )
    rule = "two_right_options" if correct in found else "inconsistent"
    return rule, f"another reader says: {said}; the record: {ascii_uppercase[correct]}"
