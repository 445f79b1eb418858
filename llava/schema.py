"""The data types that modules exchange.

A *record* is a row on disk, a *sample* is a training example, a *question* and its *answer* belong to
evaluation, a *verdict* is one answer judged, and *scores* are a benchmark's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Speaker = Literal["human", "gpt"]
RecordId = str | int
JsonObject = dict[str, Any]  # a decoded JSON object
Policy = Literal["error", "skip", "repair"]  # what to do about bad records
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. `text` may contain the image token `<image>`."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example. `image` is a path under the image folder, None for a text-only sample.

    `type` is the question type in the record (such as the data engine's skill), None if it has none.
    """

    id: RecordId
    turns: tuple[Turn, ...]
    image: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark. `text` ends with the instruction to answer briefly or by letter.

    `image` is a path under the benchmark's image folder; `image_base64` is the image itself where the
    question file contains it (MMBench).
    """

    id: RecordId
    text: str
    image: str | None = None
    category: str = "default"
    image_base64: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of an answers file. Ids may repeat (MME, TextVQA); then `prompt` identifies the question."""

    question_id: RecordId
    prompt: str
    text: str
    answer_id: str = ""
    model_id: str = ""
    metadata: dict[str, object] = field(default_factory=dict)
    extra: JsonObject = field(default_factory=dict)


Status = Literal["answered", "unparsable", "unanswered", "unjudged"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer judged: the answer, the truth, and the points (0 to 1) it earns.

    `type` is the benchmark's main category (SEED's skill, MME's subtask); `facets` are further categories.
    `status` is "unparsable" when the official rule cannot interpret the answer, and "unjudged" when only a
    server knows the truth (the score is then a meaningless 0). `asked` is a digest of all that was asked and
    shown, where `question` and `image` do not say it (MMBench).
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
    asked: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the answer earns less than half of the points: a bad case."""
        return self.score < 0.5

    def facet(self, name: str) -> str | None:
        """Return the facet called `name`; "type" counts as one. None when the verdict lacks it."""
        return self.type if name == "type" else self.facets.get(name)

    def matches(self, over: Mapping[str, str]) -> bool:
        """Return whether the verdict has every facet value in `over`."""
        return all(self.facet(name) == value for name, value in over.items())


def describe_count(count: int, official: int | None) -> str:
    """Return `count`, as "20 of 97" if officially there are more questions.

    More questions than the official ones are others: "250 (not the official 97)".
    """
    if official is None or count == official:
        return str(count)
    return f"{count} of {official}" if count < official else f"{count} (not the official {official})"


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a benchmark with its 95 % interval [low, high]; all are None when it is not available.

    To let two runs be compared question by question, a score is one of three things: 100 times the mean of
    the verdicts that match `over` ({} matches all, {"type": "color"} one type); the mean of `units`, which
    maps each independent unit to its value; or the sum of the scores in group "type" that `parts` names.

    `top` is the largest possible value. `effective` is how many units of equal weight would tell as much as
    these (an image without a "yes" tells nothing about precision), None if all have the same weight.
    `n` is the number of questions, `of` how many the official benchmark has, None if that is not known.
    `quoted` marks the numbers that papers quote.
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
    top: float = 100.0
    effective: float | None = None
    better: Literal["higher", "lower"] = "higher"
    note: str = ""
    of: int | None = None
    quoted: bool = False

    @property
    def count(self) -> str:
        """`n`, with the official number of questions if that is another."""
        return describe_count(self.n, self.of if self.is_partial else None)

    @property
    def is_partial(self) -> bool:
        """Whether the score is over another number of questions than the official benchmark has."""
        return self.value is not None and self.of is not None and self.of != self.n


@dataclass(frozen=True, slots=True)
class Scores:
    """A benchmark's numbers for one answers file.

    `headline` names the score that papers quote. `warnings` say why the numbers may be meaningless, `notes`
    how they came about. `judge` names the model that graded the answers, where one did and its file says so.
    """

    benchmark: str
    headline: str
    scores: tuple[Score, ...]
    verdicts: tuple[Verdict, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    source: str = ""
    model_id: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    judge: str = ""

    def get(self, name: str, group: str = "total") -> Score:
        """Return the score called `name` in `group`.

        Raises:
            KeyError: There is no such score.
        """
        for score in self.scores:
            if (score.group, score.name) == (group, name):
                return score
        raise KeyError(f"{self.benchmark} has no score {group}/{name}")
