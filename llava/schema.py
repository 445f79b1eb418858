"""The nouns of the package. Every module takes and returns these, not loose dictionaries.

A *record* is a row on disk, a *sample* a training example, a *question* and its *answer* belong to
evaluation, a *verdict* is one answer judged, and *scores* are what a benchmark makes of all verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Speaker = Literal["human", "gpt"]
RecordId = str | int


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said. `text` may hold the image token `<image>`."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation to learn from. `image` is a path under the image folder, None for text alone."""

    id: RecordId
    turns: tuple[Turn, ...]
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark. `text` carries the suffix that asks for a letter or a short answer."""

    id: RecordId
    text: str
    image: str | None = None
    category: str = "default"


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of an answers file; ids may repeat (MME, TextVQA), so `prompt` tells rows apart."""

    question_id: RecordId
    prompt: str
    text: str
    answer_id: str = ""
    model_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
