"""Compare two runs over the same questions: the gain in points, its 95 % interval, and a paired test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from llava.errors import DataError
from llava.schema import JsonObject, Verdict
from llava.scoring.intervals import Changes, Interval, paired_means, paired_proportions
from llava.scoring.paired_tests import sign_test

Pairs = list[tuple[float, float]]
"""Each question's points (0 to 1) in the earlier run and in the later one."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What a run gained on another, in points of 100, with the 95 % interval.

    Attributes:
        n: The number of questions.
        before: The mean points of the earlier run.
        after: The mean points of the later run.
        low: The lower end of the gain's interval.
        high: The upper end of the gain's interval.
        p: The chance of as many changes in one direction if none is likelier (`sign_test`).
    """

    n: int
    before: float
    after: float
    low: float
    high: float
    p: float

    @property
    def value(self) -> float:
        """Return the gain."""
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Return whether the interval excludes 0."""
        return not self.low <= 0 <= self.high


def compare_pairs(pairs: Pairs) -> Gain:
    """Return the gain over questions, of which there is at least one."""
    low, high = gain_interval(pairs)
    before, after = (100 * fmean(points) for points in zip(*pairs, strict=True))
    p = sign_test([new - old for old, new in pairs])
    return Gain(len(pairs), before, after, 100 * low, 100 * high, p)


def gain_row(gain: Gain) -> JsonObject:
    """Return a gain as JSON files keep it, with whether its interval excludes 0."""
    names = ("n", "before", "after", "value", "low", "high", "p")
    return {name: getattr(gain, name) for name in names} | {"clear": gain.is_clear}


def gain_interval(pairs: Pairs) -> Interval:
    """Return the 95 % interval of the mean change of points (0 to 1) from the first run to the second."""
    if {point for pair in pairs for point in pair} <= {0.0, 1.0}:
        after_before = [(after > 0, before > 0) for before, after in pairs]
        both, only_after, only_before, neither = (
            after_before.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))
        )
        return paired_proportions(both, only_after, only_before, neither)
    return paired_means([Changes.between(pairs, 1.0)], 1.0)


def pairing_key(verdict: Verdict) -> tuple[str, str, str, str]:
    """Return id, image, type and text, to sort runs alike; kept hold-out scores have no text."""
    return str(verdict.question_id), str(verdict.image), verdict.type, verdict.question


def match_verdicts(before: Sequence[Verdict], after: Sequence[Verdict]) -> Iterator[tuple[Verdict, Verdict]]:
    """Pair two runs over the same questions; ids may repeat.

    Raises:
        DataError: The runs are over different questions.
    """
    earlier, later = sorted(before, key=pairing_key), sorted(after, key=pairing_key)
    known, found = ([pairing_key(verdict)[:3] for verdict in run] for run in (earlier, later))
    if known != found:
        raise DataError(
            f"two runs are over different questions ({len(earlier)} and {len(later)}); score both on the"
            " same ones",
            code="other-questions",
        )
    return zip(earlier, later, strict=True)


def pairs_by_type(before: Sequence[Verdict], after: Sequence[Verdict]) -> dict[str, Pairs]:
    """Return (before, after) of every question, 0 to 1, by question type.

    Raises:
        DataError: The runs are over different questions.
    """
    found: dict[str, Pairs] = defaultdict(list)
    for old, new in match_verdicts(before, after):
        found[new.type].append((old.score, new.score))
    return dict(found)
