"""The nouns of the package. Every module takes and returns these, not loose dictionaries.

A *record* is a row on disk, a *sample* a training example, a *question* and its *answer* belong to
evaluation, a *verdict* is one answer judged, and *scores* are what a benchmark makes of all verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """One conversation to learn from. `image` is a path under the image folder, None for text alone.

    `type` is the question type its record names (the data engine's skill, say), None where it names none.
    """

    id: RecordId
    turns: tuple[Turn, ...]
    image: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark. `text` carries the suffix that asks for a letter or a short answer.

    `image` is a path under the benchmark's image folder; `image_base64` is the image itself where the
    benchmark ships it inside its question file (MMBench).
    """

    id: RecordId
    text: str
    image: str | None = None
    category: str = "default"
    image_base64: str | None = field(default=None, repr=False)


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


Status = Literal["answered", "unparsable", "unanswered", "unjudged"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One question judged: what was said, what is true, and how much of a point (0 to 1) that earns.

    `type` is the benchmark's own division (SEED's skill, MME's subtask); `facets` are its further
    divisions. `status` is "unparsable" when the official rule could make nothing of the answer, "unjudged"
    when the truth is known to a server only (the score is then 0 and says nothing).
    """

    question_id: RecordId
    type: str
    score: float
    answer: str | None
    truth: str
    status: Status = "answered"
    facets: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    question: str = ""

    def facet(self, name: str) -> str | None:
        """Return the facet called `name`; "type" counts as one. None when the verdict lacks it."""
        return self.type if name == "type" else self.facets.get(name)

    def matches(self, over: Mapping[str, str]) -> bool:
        """Return whether the verdict has every facet value in `over`."""
        return all(self.facet(name) == value for name, value in over.items())


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a benchmark with its 95 % interval [low, high]; all are None where it is not available.

    A score is one of three things, which is what lets two runs be compared question by question:
    the mean of the verdicts that `over` selects ({} is all; {"type": "color"} those of one type), times 100;
    the mean of `units`, a value for each independent unit; or the sum of the scores of group "type" that
    `parts` names.
    """

    name: str
    value: float | None
    n: int
    group: str = "total"
    low: float | None = None
    high: float | None = None
    interval: str = "none"
    over: dict[str, str] | None = None
    units: dict[str, float] | None = None
    parts: tuple[str, ...] = ()
    better: Literal["higher", "lower"] = "higher"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a benchmark makes of one answers file. `headline` names the score that papers quote."""

    benchmark: str
    headline: str
    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    source: str = ""
    model_id: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()

    def get(self, name: str, group: str = "total") -> Score:
        """The score called `name` in `group`; KeyError when there is none."""
        for score in self.scores:
            if (score.group, score.name) == (group, name):
                return score
        raise KeyError(f"{self.benchmark} has no score {group}/{name}")
