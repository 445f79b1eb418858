"""Measure how often the 95 % intervals of scores and of paired differences contain the true value.

Draws runs of n units (questions, images or groups of rows) from populations whose true score is known, for
each kind of score, and asks `llava.scoring.intervals` for the interval of each run, as benchmarks and reports
do. Prints the coverage for each kind and n: the mean and the lowest over the true values, and for differences
also over how far the runs are apart and how much they depend on each other. Fails if a mean is below 94 %, a
coverage below 85 %, or an interval of zero width or outside the possible range.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llava.scoring import intervals

Array = NDArray[np.float64]
Intervals = tuple[Array, Array]
VALUES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
SIZES = (5, 8, 10, 20, 30, 50, 100, 300, 1000, 5000)
# How far the second run is from the first, and the share of answers that it has in common with it.
PAIRS = ((0.0, 0.9), (0.0, 0.98), (0.08, 0.0), (0.08, 0.9), (0.5, 0.5), (0.5, 0.98))
# A sum's parts differ in difficulty: their true values are these powers of one value.
POWERS = (0.4, 0.6, 0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.4, 1.6)
WANTED_MEAN, WANTED_LOWEST = 0.94, 0.85
ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcomes:
    """What can happen to a unit: its points, what they are out of, and how likely each outcome is."""

    points: Array
    out_of: Array
    chances: Array

    @property
    def value(self) -> float:
        """The true score."""
        return float(self.points @ self.chances / (self.out_of @ self.chances))


@dataclass(frozen=True)
class Kind:
    """A kind of score. `population` gives a unit's outcomes for a true score."""

    name: str
    population: Callable[[float], Outcomes]
    powers: Sequence[float] = (1.0,)
    is_f1: bool = False
    is_right_or_wrong: bool = False

    def parts(self, value: float) -> list[Outcomes]:
        """Return the populations of a sum's parts, or the only one."""
        return [self.population(min(value**power, 0.995)) for power in self.powers]


def tilt(points: Sequence[float], weights: Sequence[float]) -> Callable[[float], Outcomes]:
    """Return populations of these points; their `weights` are tilted until the mean is the true score."""
    possible = np.array(points)

    def outcomes(amount: float) -> Outcomes:
        chances = np.array(weights) * np.exp(amount * (possible - (amount > 0)))
        return Outcomes(possible, np.ones(len(points)), chances / chances.sum())

    return cache(lambda value: _solve(outcomes, value, -300.0, 300.0))


def confuse(
    terms: Callable[[int, int], tuple[int, int]], yes: int, together: float
) -> Callable[[float], Outcomes]:
    """Return populations of images with `yes` questions whose answer is yes, and as many whose answer is no.

    Args:
        terms: A ratio's numerator and denominator of an image with these numbers of TP and FP.
        yes: Half the number of an image's questions.
        together: The share of images of which all questions are answered alike, rightly or wrongly.
    """
    cells = [(tp, fp) for tp in range(yes + 1) for fp in range(yes + 1)]
    points, out_of = np.array([terms(*cell) for cell in cells], dtype=float).T

    def outcomes(right: float) -> Outcomes:
        alone = [_binomial(tp, yes, right) * _binomial(fp, yes, 1 - right) for tp, fp in cells]
        alike = [right * (cell == (yes, 0)) + (1 - right) * (cell == (0, yes)) for cell in cells]
        return Outcomes(points, out_of, (1 - together) * np.array(alone) + together * np.array(alike))

    return cache(lambda value: _solve(outcomes, value, 1e-9, 1 - 1e-9))


def _binomial(k: int, n: int, chance: float) -> float:
    return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)


def _solve(outcomes: Callable[[float], Outcomes], value: float, low: float, high: float) -> Outcomes:
    """Return the outcomes whose true score is `value`; it grows with their parameter."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if outcomes(middle).value < value else (low, middle)
    return outcomes(low)


def f1_terms(yes: int) -> Callable[[int, int], tuple[int, int]]:
    """Return F1's numerator and denominator for images with `yes` questions whose answer is yes."""
    return lambda tp, fp: (2 * tp, 2 * tp + fp + yes - tp)


SOFT = tilt((0.0, 0.3, 0.6, 0.9, 1.0), (0.3, 0.07, 0.07, 0.06, 0.5))
MME = tilt((0.0, 0.25, 1.0), (0.3, 0.2, 0.5))
KINDS = (
    Kind("right or wrong: questions, acc+, groups", tilt((0.0, 1.0), (0.5, 0.5)), is_right_or_wrong=True),
    Kind("soft accuracy (VQA)", SOFT),
    Kind("grades (MM-Vet)", tilt([grade / 10 for grade in range(11)], [1.0] * 11)),
    Kind("MME acc, by image", tilt((0.0, 0.5, 1.0), (0.3, 0.2, 0.5))),
    Kind("MME subtask", MME),
    Kind("MME total, 10 subtasks of n", MME, powers=POWERS),
    Kind("precision, 2 questions an image", confuse(lambda tp, fp: (tp, tp + fp), 1, 0.0)),
    Kind("recall, 6 questions an image", confuse(lambda tp, _: (tp, 3), 3, 0.3)),
    Kind("F1, 2 questions an image", confuse(f1_terms(1), 1, 0.0), is_f1=True),
    Kind("F1, 6 questions an image", confuse(f1_terms(3), 3, 0.3), is_f1=True),
)


@dataclass(frozen=True)
class Sample:
    """Many runs' scores: the value of each outcome, the score, its variance and effective number of units."""

    values: Array  # runs x outcomes
    mean: Array
    variance: Array
    effective: Array


def measure(counts: Array, points: Array, out_of: Array) -> Sample:
    """Compute what an interval needs, as `llava.benchmarks.aggregate` does, from counts of the outcomes."""
    n = counts.sum(axis=1)
    total = counts @ out_of
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = counts @ points / total
        values = mean[:, None] + (points - mean[:, None] * out_of) / (total / n)[:, None]
        effective = total**2 / (counts @ out_of**2)
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / n**2
    return Sample(values, mean, variance, effective)


def score_intervals(
    kind: Kind, n: int, value: float, runs: int, draw: np.random.Generator
) -> tuple[float, Intervals]:
    """Return the true score and the intervals of `runs` runs."""
    parts = kind.parts(value)
    samples = [
        measure(draw.multinomial(n, part.chances, size=runs).astype(float), part.points, part.out_of)
        for part in parts
    ]
    mean = np.mean([sample.mean for sample in samples], axis=0)
    variance = samples[0].variance
    if len(parts) > 1:
        table = np.column_stack([sample.variance for sample in samples]).tolist()
        sums = [intervals.sum_variance([(part, n) for part in row], largest=0.25) for row in table]
        variance = np.array(sums) / len(parts) ** 2
    effective = len(parts) ** 2 / np.sum([1 / sample.effective for sample in samples], axis=0)
    interval = intervals.f1_interval if kind.is_f1 else intervals.share_interval
    rows = np.column_stack([mean, variance, effective])
    bounds = [interval(*row) for row in rows[~np.isnan(mean)].tolist()]
    return float(np.mean([part.value for part in parts])), _columns(bounds)


def difference_intervals(
    kind: Kind, n: int, values: tuple[float, float], agreement: float, runs: int, draw: np.random.Generator
) -> tuple[float, Intervals]:
    """Return the true difference and the intervals of `runs` pairs of runs."""
    before, after = (kind.parts(value) for value in values)
    changes = []
    for one, two in zip(before, after, strict=True):
        joint = _joint(one.chances, two.chances, agreement)
        counts = draw.multinomial(n, joint.ravel() / joint.sum(), size=runs).astype(float)
        if kind.is_right_or_wrong:
            table = counts[:, [3, 1, 2, 0]].astype(int).tolist()
            bounds = [intervals.paired_proportions(*row) for row in table]
            return two.value - one.value, _columns(bounds)
        changes.append(_changes(counts, one, two))
    bounds = [intervals.paired_means(row, float(len(row))) for row in zip(*changes, strict=True) if all(row)]
    low, high = _columns(bounds)
    truth = sum(two.value - one.value for one, two in zip(before, after, strict=True))
    return truth / len(before), (low / len(before), high / len(before))


def _joint(before: Array, after: Array, agreement: float) -> Array:
    """Return the chances of two outcomes: a share of units keeps its rank, the others are independent."""
    ends, other_ends = np.append(0, before.cumsum()), np.append(0, after.cumsum())
    top = np.minimum(ends[1:, None], other_ends[None, 1:])
    bottom = np.maximum(ends[:-1, None], other_ends[None, :-1])
    return agreement * np.maximum(top - bottom, 0) + (1 - agreement) * np.outer(before, after)


def _changes(counts: Array, one: Outcomes, two: Outcomes) -> Iterator[intervals.Changes | None]:
    """Yield each pair of runs' changes, as `llava.report` computes them; None if a run has no score."""
    size, other = len(one.points), len(two.points)
    first = measure(counts, np.repeat(one.points, other), np.repeat(one.out_of, other))
    second = measure(counts, np.tile(two.points, size), np.tile(two.out_of, size))
    n, effective = counts.sum(axis=1), np.minimum(first.effective, second.effective)
    steps = second.values - first.values
    sums = [(counts * steps**power).sum(axis=1) for power in (1, 2, 4)]
    largest = np.abs(np.where(counts > 0, steps, 0)).max(axis=1)
    span = np.maximum(1, largest * effective / n)
    for row in np.column_stack([n, *sums, effective, span]).tolist():
        yield None if math.isnan(sum(row)) else intervals.Changes(*row)


def _columns(bounds: Sequence[intervals.Interval]) -> Intervals:
    low, high = np.array(bounds).T
    return low, high


def judge(
    truth: float, bounds: Intervals, limits: tuple[float, float], faults: list[str], where: str
) -> float:
    """Return the share of intervals that contain `truth`; note those without width or out of range."""
    low, high = bounds
    if (high - low < ROUNDING).any():
        faults.append(f"{where}: an interval of zero width")
    if (low < limits[0]).any() or (high > limits[1]).any():
        faults.append(f"{where}: an interval outside {limits}")
    return float(((low <= truth + ROUNDING) & (truth <= high + ROUNDING)).mean())


def cover_scores(kind: Kind, n: int, runs: int, draw: np.random.Generator, faults: list[str]) -> list[float]:
    """Return the coverage of the score's interval for each true value."""
    found = []
    for value in VALUES:
        truth, bounds = score_intervals(kind, n, value, runs, draw)
        found.append(judge(truth, bounds, (0.0, 1.0), faults, f"{kind.name}, n {n}, value {value}"))
    return found


def cover_differences(
    kind: Kind, n: int, runs: int, draw: np.random.Generator, faults: list[str]
) -> list[float]:
    """Return the coverage of the difference's interval for each true value, shift and agreement."""
    found = []
    for value in VALUES:
        for shift, agreement in PAIRS:
            values = (value, min(value + shift, max(VALUES)))
            truth, bounds = difference_intervals(kind, n, values, agreement, runs, draw)
            where = f"{kind.name}, n {n}, values {values}, agreement {agreement}"
            found.append(judge(truth, bounds, (-1.0, 1.0), faults, where))
    return found


def _least(share: float, runs: int) -> float:
    """Return what chance leaves of a coverage of `share`: three standard errors less."""
    return share - 3 * math.sqrt(share * (1 - share) / runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="runs for each kind, n and true value")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, and fewer n")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    runs, sizes = (flags.runs // 10, (5, 20, 300)) if flags.quick else (flags.runs, SIZES)

    start, draw, faults = time.process_time(), np.random.default_rng(flags.seed), list[str]()
    for title, cover in (("scores", cover_scores), ("paired differences", cover_differences)):
        print(f"| {title}, mean / lowest coverage in % | {' | '.join(f'n = {n:,}' for n in sizes)} |")
        print(f"| --- |{' --- |' * len(sizes)}")
        for kind in KINDS:
            cells = []
            for n in sizes:
                found = cover(kind, n, runs, draw, faults)
                mean, lowest = sum(found) / len(found), min(found)
                cells.append(f"{100 * mean:.1f} / {100 * lowest:.1f}")
                if mean < _least(WANTED_MEAN, runs * len(found)) or lowest < _least(WANTED_LOWEST, runs):
                    faults.append(f"{title}, {kind.name}, n {n}: {cells[-1]}")
            print(f"| {kind.name} | {' | '.join(cells)} |", flush=True)
        print()
    print(f"{len(faults)} faults, {time.process_time() - start:.0f} s of processor time")
    sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
