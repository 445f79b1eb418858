"""95 % confidence intervals of shares, means, ratios and sums, and of paired differences between two runs.

Every score is a share of its largest possible value, and gets Wilson's interval for as many right or wrong
questions as would vary as much (`share_interval`). The difference of two runs over the same questions gets
Newcombe's paired interval if every unit is right or wrong (`paired_proportions`), else Bonett and Price's
(`paired_means`). No interval leaves the possible range or has zero width, and no difference excludes 0 if
fewer than six units changed. No function samples at random.
`scripts/bench/interval_coverage.py` measures how often the intervals contain the true value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

Interval = tuple[float, float]
# The name of the interval of every share, mean, ratio and sum in metrics.json.
WILSON = "wilson"
Z = NormalDist().inv_cdf(0.975)
# Changes of fewer units may all go one way by chance: the sign test gives 2 x 0.5^5 = 6 % for five.
FEWEST_CHANGES = 6
# What rounding may change in a count.
ROUNDING = 1e-9


def wilson(right: float, n: float) -> Interval:
    """Return Wilson's score interval of the proportion right / n, within [0, 1].

    Source: E. B. Wilson, JASA 22 (1927), equation for the score interval, without continuity correction.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == n else min(1.0, centre + half)
    return low, high


def share_interval(share: float, variance: float, n: float) -> Interval:
    """Return the interval of a mean of values between 0 and 1, within [0, 1].

    It is Wilson's for the effective sample size: the number of right or wrong questions whose share varies as
    much as this one. The variance is estimated with two more units, one of 0 and one of 1, so that a few
    equal values do not look certain. Without partial points the effective size is `n`, and the interval
    Wilson's.

    Where at most one question is right (or wrong), the lower (or upper) limit is a Poisson variable's;
    Wilson's alone covers as little as 83 % there.

    Sources: C. Franco, R. Little, T. Louis and E. Slud, J. Survey Statistics and Methodology 7 (2019) 334
    (Wilson's interval with an effective sample size); L. Brown, T. Cai and A. DasGupta, Statistical Science
    16 (2001) 101, section 4.1.1 (limits near 0 and 1).

    Args:
        share: The mean.
        variance: The variance of the mean (not of one value), as `mean_variance` gives it.
        n: The number of independent units, 0 if none tells anything.
    """
    share = min(1.0, max(0.0, share))
    centre = (n * share + 1) / (n + 2)
    squares = n * n * variance + n * (share - centre) ** 2 + centre**2 + (1 - centre) ** 2
    size = n * (n + 2) * centre * (1 - centre) / squares
    low, high = wilson(share * size, size)
    rare = -math.log(0.95)
    if share * size <= 1 + ROUNDING:
        low = min(low, share * rare)
    if (1 - share) * size <= 1 + ROUNDING:
        high = max(high, 1 - (1 - share) * rare)
    return low, high


def f1_interval(f1: float, variance: float, n: float) -> Interval:
    """Return the interval of an F1: the wider limits of the direct and the indirect Wilson interval.

    The indirect one is that of TP / (TP + FP + FN), which is a share of questions and grows with F1. The
    direct one takes F1 itself as a share, which it is of images that are all right or all wrong.

    Source: K. F. Y. Lam, V. Gopal and J. Qian, arXiv 2309.14621 (2023), for both.

    Args:
        f1: F1 = 2 TP / (2 TP + FP + FN), or a mean of several.
        variance: Its variance, such as the delta method's.
        n: The number of independent units with a TP, FP or FN.
    """
    slope = 2 / (2 - f1) ** 2
    low, high = share_interval(f1 / (2 - f1), variance * slope**2, n)
    direct_low, direct_high = share_interval(f1, variance, n)
    return min(2 * low / (1 + low), direct_low), max(2 * high / (1 + high), direct_high)


def mean_variance(values: Sequence[float]) -> float:
    """Return the variance of the mean of independent `values`: their population variance / their number."""
    centre = fmean(values)
    return math.fsum((value - centre) ** 2 for value in values) / len(values) ** 2


def mean_interval(points: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of independent points, each from 0 to 1."""
    return share_interval(fmean(points), mean_variance(points), len(points))


def sum_variance(parts: Sequence[tuple[float, int]], largest: float) -> float:
    """Return the variance of a sum of independent means, for use with the normal quantile.

    A part of few units makes the sum's variance itself uncertain. It is therefore larger by the square of
    Student's over the normal quantile.

    Source: F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110, for the degrees of freedom.

    Args:
        parts: Each part's `mean_variance` and number of units.
        largest: The largest possible variance of a unit, which a part of one unit gets.
    """
    variances = [variance * n / (n - 1) if n > 1 else largest for variance, n in parts]
    total = sum(variances)
    weight = sum(variance**2 / max(1, n - 1) for variance, (_, n) in zip(variances, parts, strict=True))
    return total * (_student(total**2 / weight) / Z) ** 2 if weight else total


def ratio_units(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    """Linearize the ratio sum(tops) / sum(bottoms): return one value per unit with that ratio as their mean.

    By the delta method the values also have the ratio's variance, so that intervals and paired differences of
    means apply to ratios such as F1 = 2 TP / (2 TP + FP + FN). `bottoms` must not sum to 0.
    """
    ratio, bottom = sum(tops) / sum(bottoms), fmean(bottoms)
    return [ratio + (a - ratio * b) / bottom for a, b in zip(tops, bottoms, strict=True)]


def effective_units(weights: Sequence[float]) -> float:
    """Return how many units of equal weight would tell as much as units of these `weights`, 0 if all are 0.

    Source: L. Kish, Survey Sampling (1965): (sum of weights)^2 / sum of squared weights.
    """
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


def paired_proportions(both: int, only_after: int, only_before: int, neither: int) -> Interval:
    """Return Newcombe's paired interval of the share that is right after - the share that was right before.

    With fewer than six changes it is extended to 0.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10 (Wilson limits, corrected phi).

    Args:
        both: How many are right in both runs.
        only_after: How many are right only in the later run.
        only_before: How many are right only in the earlier run.
        neither: How many are wrong in both.
    """
    n = both + only_after + only_before + neither
    share_after, share_before = (both + only_after) / n, (both + only_before) / n
    low_a, high_a = wilson(both + only_after, n)
    low_b, high_b = wilson(both + only_before, n)
    phi = _phi(both, only_after, only_before, neither)
    difference = share_after - share_before
    down_a, up_a = share_after - low_a, high_a - share_after
    down_b, up_b = share_before - low_b, high_b - share_before
    low = difference - math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    high = difference + math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    return _extend(low, high, only_after + only_before)


def _extend(low: float, high: float, changed: float) -> Interval:
    """Extend the interval of a difference to 0 if too few units changed."""
    return (low, high) if changed >= FEWEST_CHANGES - ROUNDING else (min(low, 0.0), max(high, 0.0))


def _phi(both: int, only_after: int, only_before: int, neither: int) -> float:
    margins = (both + only_after) * (only_before + neither) * (both + only_before) * (only_after + neither)
    if margins == 0:
        return 0.0
    numerator = float(both * neither - only_after * only_before)
    if numerator > 0:
        numerator = max(numerator - (both + only_after + only_before + neither) / 2, 0.0)
    return numerator / math.sqrt(margins)


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of the units of one score between two runs.

    Attributes:
        n: The number of units.
        total: The sum of the changes.
        squares: The sum of their squares.
        fourths: The sum of their fourth powers.
        effective: How many units of equal weight would tell as much.
        span: The largest change that one of these could have made.
    """

    n: float
    total: float
    squares: float
    fourths: float
    effective: float
    span: float

    @classmethod
    def between(
        cls, pairs: Sequence[tuple[float, float]], span: float, effective: float | None = None
    ) -> Changes:
        """Return the changes from each unit's first value to its second."""
        n = len(pairs)
        effective = n if effective is None else effective
        steps = [after - before for before, after in pairs]
        total, squares, fourths = (math.fsum(step**power for step in steps) for power in (1, 2, 4))
        largest = max(map(abs, steps)) * effective / n
        return cls(n, total, squares, fourths, effective, max(span, largest))


def paired_means(parts: Sequence[Changes], limit: float) -> Interval:
    """Return the interval of the sum over `parts` of their mean change, within [-limit, limit].

    Two more units, one that gains and one that loses, keep a few equal changes from looking certain. Where
    units are right or wrong they change by 1, as in the source. Else their change is the root mean square of
    those seen and one of the full span, so it comes close to what is usual where many units change a little.
    A sum shares the two units among its parts. The quantile is Student's. With fewer than six changes the
    interval is extended to 0.

    Source: D. G. Bonett and R. M. Price, J. Educational and Behavioral Statistics 37 (2012) 479, for units
    that are right or wrong.
    """
    change = sum(part.total / part.n for part in parts)
    squares = sum(part.squares / part.n**2 for part in parts)
    fourths = sum(part.fourths / part.n**4 for part in parts)
    inside = squares - sum(part.total**2 / part.n**3 for part in parts)
    # As many equal changes have these sums; without points between 0 and 1 it is the number of changes.
    changed = squares**2 / fourths if fourths else 0.0
    full = fmean([part.span / part.effective for part in parts])
    added = (full**2 + squares) / (1 + changed)
    n = len(parts) ** 2 / sum(1 / part.effective for part in parts)
    shrink = n / (n + 2)
    variance = max(inside, 0.0) + 2 * added + 2 * change**2 / (n * (n + 2))
    half = _student(n - 1) * shrink * math.sqrt(variance)
    low, high = max(shrink * change - half, -limit), min(shrink * change + half, limit)
    return _extend(low, high, changed)


def _student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's distribution; below one degree of freedom that of one.

    Source: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 26.7.5; 0.03 % low for four
    degrees of freedom, 11 % for one.
    """
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return sum(term / max(freedom, 1.0) ** power for power, term in enumerate(terms))
