"""Say before money is spent which gain a round could show, given how many questions change between two runs.

The test is McNemar's for paired proportions. Its variance comes from the questions that change only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from llava.schema import JsonObject
from llava.scoring.intervals import FEWEST_CHANGES

SIGNIFICANCE = 0.05
POWER = 0.8


def smallest_gain(
    n: int, flip_rate: float, *, significance: float = SIGNIFICANCE, power: float = POWER
) -> float | None:
    """Return the smallest gain (a share, as 0.0105) that `n` paired questions show with this power.

    Source: R. J. Connor, Biometrics 43 (1987) 207, n = (a sqrt(f) + b sqrt(f - g^2))^2 / g^2 for the gain g
    and the flip rate f, solved for g. A gain larger than the flip rate takes as many flips, so f is g there;
    and fewer than six flips never show a gain (`llava.scoring.intervals`).

    Args:
        n: The number of paired questions.
        flip_rate: The share of them that is right in one run only.
        significance: The two-sided chance of a false gain.
        power: The wanted chance to see the gain.

    Returns:
        The gain, or None if `n` questions show none.
    """
    a, b = _quantiles(significance, power)
    if n < max(FEWEST_CHANGES, a * a):
        return None
    flips = max(flip_rate, FEWEST_CHANGES / n)
    gain = math.sqrt(flips) * (a * math.sqrt(n) + b * math.sqrt(n + b * b - a * a)) / (n + b * b)
    if gain > flips:
        root = (math.sqrt(a * a * b * b + (n + b * b) * (n - a * a)) - a * b) / (n + b * b)
        gain = max(flips, 1 - root * root)
    return gain


def questions_needed(
    gain: float, flip_rate: float, *, significance: float = SIGNIFICANCE, power: float = POWER
) -> int:
    """Return how many paired questions show a `gain`, a share above 0."""
    a, b = _quantiles(significance, power)
    flips = max(flip_rate, gain)
    n = (a * math.sqrt(flips) + b * math.sqrt(flips - gain * gain)) ** 2 / gain**2
    return math.ceil(max(n, FEWEST_CHANGES / flips))


def _quantiles(significance: float, power: float) -> tuple[float, float]:
    normal = NormalDist()
    return normal.inv_cdf(1 - significance / 2), normal.inv_cdf(power)


def flip_rate_of(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the mean squared change of points; for right and wrong it is the share that changed."""
    return math.fsum((after - before) ** 2 for before, after in pairs) / len(pairs)


def foresee(
    types: Mapping[str, tuple[int, float]],
    *,
    flip_rate: float,
    flips: str,
    rounds: int,
    expected_gain: float,
    cost: float | None,
) -> JsonObject:
    """Return what a round could show over the hold-out, as plan.json keeps it.

    Args:
        types: Per type its number of hold-out questions and its accuracy (a share).
        flip_rate: The share of questions that change between two runs; one for all types, as the flips of a
            small type are too few for a rate of its own.
        flips: Where the flip rate is from.
        rounds: The planned rounds, which share the chance of a false gain.
        expected_gain: The overall gain, in points, that would be worth the round.
        cost: Dollars of the round, None if not known.
    """
    significance = SIGNIFICANCE / rounds

    def row(n: int, accuracy: float) -> JsonObject:
        gain = smallest_gain(n, flip_rate, significance=significance)
        seen = gain is not None and gain <= 1 - accuracy
        return {"n": n, "smallest_gain": None if gain is None else 100 * gain, "can_be_seen": seen}

    total = sum(n for n, _ in types.values())
    mean = sum(n * accuracy for n, accuracy in types.values()) / total if total else 0.0
    overall = row(total, mean)
    worth = overall["can_be_seen"] and overall["smallest_gain"] <= expected_gain
    needed = None
    if expected_gain:
        needed = questions_needed(expected_gain / 100, flip_rate, significance=significance)
    power = {
        "power": POWER,
        "significance": significance,
        "flip_rate": flip_rate,
        "flips": flips,
        "expected_gain": expected_gain,
        "questions_needed": needed,
        "cost": cost,
        "overall": overall | {"can_be_seen": worth},
        "types": {name: row(n, accuracy) for name, (n, accuracy) in types.items()},
    }
    return power | {"sentences": _sentences(power)}


def _sentences(power: JsonObject) -> list[str]:
    """Return what the numbers mean."""
    overall, needed = power["overall"], power["questions_needed"]
    price = "cost not known (set price)" if power["cost"] is None else f"cost ${power['cost']:,.2f}"
    smallest = overall["smallest_gain"]
    shows = "no gain at all" if smallest is None else f"a gain of {smallest:.2f} points or more"
    sentences = [
        f"{overall['n']:,} questions to report on show {shows} at {power['power']:.0%} power"
        f" (significance {power['significance']:.3g}, {power['flip_rate']:.1%} of questions change:"
        f" {power['flips']}); {price}"
    ]
    if not overall["can_be_seen"]:
        more = "any gain counts" if needed is None else f"it takes {needed:,} questions"
        sentences.append(
            f"This round cannot be seen: {power['expected_gain']:.2f} points are expected (expected_gain);"
            f" {more}"
        )
    for name, row in power["types"].items():
        if row["smallest_gain"] is None:
            sentences.append(f"{name}: no gain can be seen on {row['n']} questions")
        elif not row["can_be_seen"]:
            sentences.append(
                f"{name}: no gain can be seen on {row['n']} questions; it would have to be"
                f" {row['smallest_gain']:.1f} points, more than are missing"
            )
        elif row["smallest_gain"] > power["expected_gain"]:
            sentences.append(f"{name}: a gain below {row['smallest_gain']:.1f} points cannot be seen")
    return sentences
