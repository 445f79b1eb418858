"""Test the intervals' coverage, range and width by going through all outcomes of few units."""

from __future__ import annotations

import math
import random
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, combinations_with_replacement, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from llava.benchmarks import aggregate
from llava.report import paired_difference
from llava.schema import Score, Scores, Verdict
from llava.scoring import intervals

VALUES = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)  # fmt: skip
def test_wilson_gives_newcombes_published_values(right: int, n: int, low: float, high: float) -> None:
    """The first four rows are of R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3."""
    assert intervals.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("both", "after", "before", "neither", "low", "high"),
    [(36, 12, 2, 0, 0.0569, 0.3404), (2, 98, 0, 0, 0.9178, 0.9945), (54, 0, 0, 0, -0.0664, 0.0664)],
)
def test_paired_proportions_give_newcombes_published_values(
    both: int, after: int, before: int, neither: int, low: float, high: float
) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, table III, method 10."""
    got = intervals.paired_proportions(both, after, before, neither)
    assert got == pytest.approx((low, high), abs=5e-4)


def test_paired_means_of_right_or_wrong_units_are_bonett_and_prices() -> None:
    """The source's formula, with Student's quantile for 49 degrees of freedom."""
    only_after, only_before, n = 12, 2, 50
    pairs = [(0.0, 1.0)] * only_after + [(1.0, 0.0)] * only_before + [(1.0, 1.0)] * (n - 14)
    up, down = (only_after + 1) / (n + 2), (only_before + 1) / (n + 2)
    half = 2.00958 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    got = intervals.paired_means([intervals.Changes.between(pairs, 1.0)], 1.0)
    assert got == pytest.approx((up - down - half, up - down + half), abs=1e-5)


@pytest.mark.parametrize("right", [2, 45, 500])
def test_a_share_of_right_questions_gets_wilsons_interval(right: int) -> None:
    share = right / 1000
    got = intervals.share_interval(share, share * (1 - share) / 1000, 1000)
    assert got == pytest.approx(intervals.wilson(right, 1000), abs=1e-12)


def test_a_ratios_units_average_to_the_ratio_and_spread_as_a_bootstrap_does() -> None:
    rng = random.Random(5)
    bottoms = [rng.randint(1, 9) for _ in range(400)]
    tops = [rng.randint(0, bottom) for bottom in bottoms]
    units = intervals.ratio_units(tops, bottoms)
    assert fmean(units) == pytest.approx(sum(tops) / sum(bottoms))
    drawn = [rng.choices(range(400), k=400) for _ in range(1000)]
    ratios = [sum(tops[i] for i in draw) / sum(bottoms[i] for i in draw) for draw in drawn]
    assert math.sqrt(intervals.mean_variance(units)) == pytest.approx(stdev(ratios), rel=0.1)


def test_pairing_narrows_the_interval_when_answers_agree() -> None:
    low, high = intervals.paired_proportions(95, 8, 5, 92)
    wide_low, wide_high = intervals.paired_proportions(50, 53, 50, 47)
    assert high - low < (wide_high - wide_low) / 2


def compositions(n: int, cells: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to put n units into `cells` outcomes."""
    for bars in combinations(range(n + cells - 1), cells - 1):
        edges = (-1, *bars, n + cells - 1)
        yield tuple(after - before - 1 for before, after in pairwise(edges))


def chance(counts: Sequence[int], chances: Sequence[float]) -> float:
    """Return the multinomial chance of these counts."""
    ways = math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))
    return ways * math.prod(p**count for p, count in zip(chances, counts, strict=True))


def tilted(points: Sequence[float], value: float) -> list[float]:
    """Return chances of `points` with mean `value`."""
    low, high = -300.0, 300.0
    for _ in range(80):
        middle = (low + high) / 2
        weights = [math.exp(middle * (point - (middle > 0))) for point in points]
        chances = [weight / sum(weights) for weight in weights]
        mean = sum(p * point for p, point in zip(chances, points, strict=True))
        low, high = (middle, high) if mean < value else (low, middle)
    return chances


def spread(outcomes: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """Return units with these outcomes."""
    values = [value for value, count in zip(outcomes, counts, strict=True) for _ in range(count)]
    return {str(number): value for number, value in enumerate(values)}


def check_coverage(coverage: Sequence[float]) -> None:
    assert fmean(coverage) >= 0.94
    assert min(coverage) >= 0.85


def check_interval(score: Score) -> tuple[float, float]:
    assert score.value is not None
    assert score.low is not None
    assert score.high is not None
    assert 0.0 <= score.low <= score.value + 1e-9
    assert score.value - 1e-9 <= score.high <= score.top
    assert score.high - score.low > 0.01 * score.top
    return score.low, score.high


def test_proportions_cover_at_every_n_and_value() -> None:
    for n in range(5, 41):
        bounds = [intervals.share_interval(k / n, k * (n - k) / n**3, n) for k in range(n + 1)]
        coverage = []
        for value in (step / 200 for step in range(4, 197)):
            covered = [k for k, (low, high) in enumerate(bounds) if low <= value <= high]
            coverage.append(sum(math.comb(n, k) * value**k * (1 - value) ** (n - k) for k in covered))
        check_coverage(coverage)


@pytest.mark.parametrize(
    ("points", "n"), [((0.0, 50.0, 200.0), 5), ((0.0, 50.0, 200.0), 20), ((0.0, 60.0, 120.0, 200.0), 8)]
)
def test_means_of_partial_points_cover_and_stay_in_range(points: tuple[float, ...], n: int) -> None:
    """MME's images, and soft accuracies."""
    tables = list(compositions(n, len(points)))
    bounds = [
        check_interval(aggregate.mean_of_units("x", spread(points, counts), top=200.0)) for counts in tables
    ]
    coverage = []
    for value in VALUES:
        chances = tilted([point / 200 for point in points], value)
        covered = [low - 1e-9 <= 200 * value <= high + 1e-9 for low, high in bounds]
        coverage.append(
            sum(chance(counts, chances) for counts, is_in in zip(tables, covered, strict=True) if is_in)
        )
    check_coverage(coverage)


# The contributions of TP, FP, FN and TN to a ratio's numerator and denominator.
RATIOS = {
    "F1": ((2, 2), (0, 1), (0, 1), (0, 0)),
    "precision": ((1, 1), (0, 1), (0, 0), (0, 0)),
    "recall": ((1, 1), (0, 0), (0, 1), (0, 0)),
}


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_cover_and_stay_in_range(name: str) -> None:
    terms = RATIOS[name]
    interval = intervals.f1_interval if name == "F1" else intervals.share_interval
    tables = list(compositions(10, 4))
    bounds = []
    for counts in tables:
        units = [term for term, count in zip(terms, counts, strict=True) for _ in range(count)]
        top, bottom = (sum(column) for column in zip(*units, strict=True))
        numbered = {str(number): unit for number, unit in enumerate(units)}
        value = top / bottom if bottom else 0.0
        score = aggregate.ratio_of_units("x", numbered, group="x", value=value, n=10, interval=interval)
        bounds.append(check_interval(score))
    coverage = []
    for right in VALUES:
        chances = (right / 2, (1 - right) / 2, (1 - right) / 2, right / 2)
        tops, bottoms = (
            sum(p * term[side] for p, term in zip(chances, terms, strict=True)) for side in (0, 1)
        )
        covered = [low <= 100 * tops / bottoms <= high for low, high in bounds]
        coverage.append(
            sum(chance(counts, chances) for counts, is_in in zip(tables, covered, strict=True) if is_in)
        )
    check_coverage(coverage)


def is_clear(bounds: intervals.Interval) -> bool:
    return not bounds[0] <= 0.0 <= bounds[1]


@pytest.mark.parametrize("n", [5, 8, 14])
@pytest.mark.parametrize("together", [0.0, 0.9])
def test_paired_proportions_cover_and_are_clear_only_with_six_changes(n: int, together: float) -> None:
    tables = list(compositions(n, 4))
    bounds = [intervals.paired_proportions(*counts) for counts in tables]
    for (_, after, before, _), (low, high) in zip(tables, bounds, strict=True):
        assert -1.0 <= low <= (after - before) / n <= high <= 1.0
        assert high - low > 0.2
        assert after + before >= 6 or not is_clear((low, high))
    coverage = []
    for old in VALUES:
        for new in VALUES:
            both = together * min(old, new) + (1 - together) * old * new
            chances = (both, new - both, old - both, 1 - old - new + both)
            covered = [low <= new - old + 1e-12 and new - old - 1e-12 <= high for low, high in bounds]
            coverage.append(
                sum(chance(counts, chances) for counts, is_in in zip(tables, covered, strict=True) if is_in)
            )
    check_coverage(coverage)


def test_paired_means_cover_and_stay_in_range() -> None:
    """MME's images in two runs: nine pairs of outcomes."""
    points = (0.0, 0.25, 1.0)
    pairs = [(one, two) for one in points for two in points]
    tables = list(compositions(5, 9))
    bounds = []
    for counts in tables:
        units = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
        low, high = intervals.paired_means([intervals.Changes.between(units, 1.0)], 1.0)
        assert -1.0 <= low < high <= 1.0
        bounds.append((low, high))
    for old, new in [(0.5, 0.5), (0.05, 0.95), (0.2, 0.8), (0.9, 0.98)]:
        first, second = tilted(points, old), tilted(points, new)
        chances = [one * two for one in first for two in second]
        covered = [low <= new - old <= high for low, high in bounds]
        total = sum(chance(counts, chances) for counts, is_in in zip(tables, covered, strict=True) if is_in)
        assert total >= 0.94


@pytest.mark.parametrize("n", [5, 6, 10, 50, 500])
def test_fewer_than_six_changes_are_never_clear(n: int) -> None:
    for changed in range(min(5, n) + 1):
        for steps in combinations_with_replacement((0.01, 0.25, 1.0), changed):
            pairs = [(0.0, step) for step in steps] + [(0.5, 0.5)] * (n - changed)
            for parts in (1, 3):
                unchanged = [intervals.Changes.between([(0.5, 0.5)] * n, 1.0)] * (parts - 1)
                low, high = intervals.paired_means([intervals.Changes.between(pairs, 1.0), *unchanged], parts)
                assert not is_clear((low, high))
                assert high - low > 1 / n


def test_many_changes_one_way_are_clear() -> None:
    pairs = [(0.0, 0.25)] * 12 + [(0.5, 0.5)] * 500
    assert is_clear(intervals.paired_means([intervals.Changes.between(pairs, 1.0)], 1.0))
    assert is_clear(intervals.paired_proportions(0, 6, 0, 0))


@pytest.mark.parametrize("sizes", [(1, 1), (4, 5, 6), (30, 30, 20)])
@pytest.mark.parametrize("value", [0.0, 50.0, 200.0])
def test_sums_stay_in_range_and_are_never_certain(sizes: tuple[int, ...], value: float) -> None:
    parts = [
        aggregate.mean_of_units(f"{number}", spread([value], [size]), group="type", top=200.0)
        for number, size in enumerate(sizes)
    ]
    check_interval(aggregate.sum_of("sum", parts))


def scores_with(score: Score) -> Scores:
    return Scores("toy", score.name, (score,))


def test_units_that_are_right_or_wrong_are_paired_as_proportions() -> None:
    before = {str(number): 100.0 * (number % 2) for number in range(40)}
    after = {**before, **{str(number): 100.0 for number in range(0, 20, 2)}}
    old, new = (scores_with(aggregate.share_of_units("acc+", units)) for units in (before, after))
    change = paired_difference(old, new, "total", "acc+")
    assert change is not None
    low, high = intervals.paired_proportions(20, 10, 0, 10)
    assert (change.low, change.high) == pytest.approx((100 * low, 100 * high))


@pytest.mark.parametrize("make", [aggregate.share_of_units, aggregate.mean_of_units])
def test_four_units_that_turn_right_are_not_a_clear_difference(make: Callable[..., Score]) -> None:
    old, new = (scores_with(make("x", spread([value], [4]))) for value in (0.0, 100.0))
    change = paired_difference(old, new, "total", "x")
    assert change is not None
    assert change.value == 100.0
    assert not change.is_clear


def test_units_that_tell_nothing_leave_a_difference_open() -> None:
    """No question of an image is answered yes, and none should be: nothing is known of F1."""
    score = aggregate.mean_of_units("F1", {"1": 0.0, "2": 0.0}, effective=0.0, interval=intervals.f1_interval)
    assert (score.low, score.high) == (0.0, 100.0)
    change = paired_difference(scores_with(score), scores_with(score), "total", "F1")
    assert change is not None
    assert (change.low, change.high) == (-100.0, 100.0)


def test_a_part_of_few_units_widens_a_sum() -> None:
    parts = [intervals.mean_variance([0.0, 1.0] * size) for size in (2, 100)]
    few, many = (
        intervals.sum_variance([(part, size), (parts[1], 200)], 0.25)
        for part, size in ((parts[0], 4), (parts[0], 400))
    )
    assert few > 2.5 * many > 2.5 * sum(parts)
    assert intervals.sum_variance([(0.0, 1)], 0.25) > 0.25


def test_one_soft_answer_has_an_interval() -> None:
    score = aggregate.accuracy([Verdict("1", "x", 0.3, "two", "2")], "x", over={})
    low, high = check_interval(score)
    assert low < 10 < 80 < high


COVERAGE = runpy.run_path(str(Path(__file__).parents[2] / "scripts/bench/interval_coverage.py"))


def score_of(kind: Any, parts: Sequence[Any], picks: Sequence[Any]) -> Scores:
    """Score what the coverage script draws, through the functions that benchmarks call."""
    interval = intervals.f1_interval if kind.is_f1 else intervals.share_interval
    scores = []
    for number, (part, picked) in enumerate(zip(parts, picks, strict=True)):
        points = {str(unit): part.points[pick] for unit, pick in enumerate(picked)}
        terms = {str(unit): (part.points[pick], part.out_of[pick]) for unit, pick in enumerate(picked)}
        value = sum(points.values()) / sum(bottom for _, bottom in terms.values())
        scores.append(
            aggregate.mean_of_units(f"{number}", points, group="type", top=1.0)
            if set(part.out_of) == {1.0}
            else aggregate.ratio_of_units(
                f"{number}", terms, group="type", value=value, n=1, scale=1.0, interval=interval
            )
        )
    total = aggregate.sum_of("x", scores) if len(scores) > 1 else replace(scores[0], name="x", group="total")
    return Scores("toy", "x", (*scores, total))


@pytest.mark.parametrize("kind", COVERAGE["KINDS"], ids=lambda kind: kind.name)
def test_the_coverage_script_measures_the_intervals_that_benchmarks_and_reports_give(kind: Any) -> None:
    n, old, new, agreement = 30, 0.6, 0.8, 0.5
    _, (low, high) = COVERAGE["score_intervals"](kind, n, old, 1, np.random.default_rng(0))
    draw, parts = np.random.default_rng(0), kind.parts(old)
    counts = [draw.multinomial(n, part.chances) for part in parts]
    score = score_of(kind, parts, [np.repeat(np.arange(len(own)), own) for own in counts]).get("x")
    assert (score.low, score.high) == pytest.approx((low[0] * len(parts), high[0] * len(parts)), abs=1e-9)

    _, (low, high) = COVERAGE["difference_intervals"](
        kind, n, (old, new), agreement, 1, np.random.default_rng(0)
    )
    draw, others = np.random.default_rng(0), kind.parts(new)
    picks = []
    for one, two in zip(parts, others, strict=True):
        joint = COVERAGE["_joint"](one.chances, two.chances, agreement)
        drawn = draw.multinomial(n, joint.ravel() / joint.sum())
        picks.append(np.divmod(np.repeat(np.arange(len(drawn)), drawn), len(two.points)))
    before = score_of(kind, parts, [first for first, _ in picks])
    after = score_of(kind, others, [second for _, second in picks])
    change = paired_difference(before, after, "total", "x")
    assert change is not None
    assert (change.low, change.high) == pytest.approx((low[0] * len(parts), high[0] * len(parts)), abs=1e-9)
