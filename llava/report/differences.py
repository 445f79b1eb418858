"""Differences between two runs over the same questions: the value, its 95 % interval, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.schema import Score, Scores
from llava.scoring import intervals
from llava.scoring.metrics import PERCENT
from llava.scoring.paired_tests import sign_flip_test


@dataclass(frozen=True, slots=True)
class Difference:
    """Run minus baseline over the same questions, with the 95 % interval (None: not available)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def paired_difference(before: Scores, after: Scores, group: str, name: str) -> Difference | None:
    """Return the paired difference after - before of one score, None if either has no value.

    The verdicts of both are of the same questions in the same order.
    """
    try:
        old, new = before.get(name, group), after.get(name, group)
    except KeyError:
        return None
    if old.value is None or new.value is None:
        return None
    change = new.value - old.value
    bounds = _bounds(before, after, old, new)
    return Difference(change, *bounds) if bounds else Difference(change)


def paired_p(before: Scores, after: Scores, group: str, name: str) -> float | None:
    """Return the two-sided p of the paired difference of one score, None where it has no interval.

    It is McNemar's exact test where every unit is right or wrong, else the test that flips signs.
    """
    try:
        old, new = before.get(name, group), after.get(name, group)
    except KeyError:
        return None
    pairs = _paired_parts(before, after, old, new)
    if old.value is None or new.value is None or not pairs:
        return None
    return sign_flip_test([(two - one) / len(part) for part in pairs for one, two in part])


def _bounds(before: Scores, after: Scores, old: Score, new: Score) -> intervals.Interval | None:
    """Return the interval of new - old, None if a score does not tell its units."""
    pairs = _paired_parts(before, after, old, new)
    if not pairs:
        return None
    right_or_wrong = all(value in (0.0, old.top) for pair in pairs[0] for value in pair)
    if right_or_wrong and not old.parts and old.effective is None:
        outcomes = [(old.top, old.top), (0.0, old.top), (old.top, 0.0), (0.0, 0.0)]
        low, high = intervals.paired_proportions(*map(pairs[0].count, outcomes))
        return old.top * low, old.top * high
    changes = [
        intervals.Changes.between(values, one.top, min(_effective(one, values), _effective(two, values)))
        for values, (one, two) in zip(pairs, _parts(before, after, old, new), strict=True)
    ]
    return intervals.paired_means(changes, limit=max(old.top, new.top))


def _parts(before: Scores, after: Scores, old: Score, new: Score) -> list[tuple[Score, Score]]:
    """Return the scores in both runs that one score is the sum of, or the score itself."""
    return [(before.get(part, "type"), after.get(part, "type")) for part in old.parts] or [(old, new)]


def _paired_parts(before: Scores, after: Scores, old: Score, new: Score) -> list[list[tuple[float, float]]]:
    """Return the paired values of each part of a score; nothing if a part does not tell its units."""
    pairs = [_paired_values(before, after, one, two) for one, two in _parts(before, after, old, new)]
    return pairs if all(pairs) else []


def _effective(score: Score, values: Sequence[tuple[float, float]]) -> float:
    """Return how many units of equal weight would tell as much, at least one."""
    return len(values) if score.effective is None else max(1.0, score.effective)


def _paired_values(before: Scores, after: Scores, old: Score, new: Score) -> list[tuple[float, float]]:
    """Return each question's or unit's value in both runs; nothing if the units differ or are not known."""
    if old.over is not None:
        return [
            (PERCENT * one.score, PERCENT * two.score)
            for one, two in zip(before.verdicts, after.verdicts, strict=True)
            if one.matches(old.over)
        ]
    if not old.units or not new.units or old.units.keys() != new.units.keys():
        return []
    return [(value, new.units[unit]) for unit, value in old.units.items()]
