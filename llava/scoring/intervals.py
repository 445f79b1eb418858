"""95 % confidence intervals for proportions, means, sums and paired differences.

Proportions (correct questions out of n) get Wilson's interval, which is reliable near 0 and 1 and for small
n. Means and ratios over independent units get the normal approximation. The difference of two runs over the
same questions gets Newcombe's paired interval when every question is right or wrong, else the normal
approximation on the differences. No function samples at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

Interval = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)


def wilson(right: float, n: int) -> Interval:
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


def mean_variance(values: Sequence[float]) -> float | None:
    """Return the variance of the mean of independent `values`, None for fewer than two."""
    return variance(values) / len(values) if len(values) > 1 else None


def mean(values: Sequence[float]) -> Interval | None:
    """Return the normal interval of the mean of independent `values`, None for fewer than two."""
    squared_error = mean_variance(values)
    return None if squared_error is None else normal(fmean(values), squared_error)


def normal(value: float, squared_error: float) -> Interval:
    """Return the normal interval of an estimate `value` whose variance is `squared_error`."""
    half = Z * math.sqrt(squared_error)
    return value - half, value + half


def ratio_units(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    """Linearize the ratio sum(tops) / sum(bottoms): return one value per unit with that ratio as their mean.

    By the delta method the values also have the ratio's variance, so `mean` and paired differences apply to
    ratios such as F1 = 2 TP / (2 TP + FP + FN). `bottoms` must not sum to 0.
    """
    ratio, bottom = sum(tops) / sum(bottoms), fmean(bottoms)
    return [ratio + (a - ratio * b) / bottom for a, b in zip(tops, bottoms, strict=True)]


def paired_proportions(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Return Newcombe's paired interval of mean(after) - mean(before), where every value is 0 or 1.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10 (Wilson limits, corrected phi).
    """
    n = len(before)
    pairs = list(zip(before, after, strict=True))
    both, only_after = pairs.count((1.0, 1.0)), pairs.count((0.0, 1.0))
    only_before, neither = pairs.count((1.0, 0.0)), pairs.count((0.0, 0.0))
    share_after, share_before = (both + only_after) / n, (both + only_before) / n
    low_a, high_a = wilson(both + only_after, n)
    low_b, high_b = wilson(both + only_before, n)
    phi = _phi(both, only_after, only_before, neither)
    difference = share_after - share_before
    down_a, up_a = share_after - low_a, high_a - share_after
    down_b, up_b = share_before - low_b, high_b - share_before
    down = math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    up = math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    return difference - down, difference + up


def _phi(both: int, only_after: int, only_before: int, neither: int) -> float:
    margins = (both + only_after) * (only_before + neither) * (both + only_before) * (only_after + neither)
    if margins == 0:
        return 0.0
    numerator = float(both * neither - only_after * only_before)
    if numerator > 0:
        numerator = max(numerator - (both + only_after + only_before + neither) / 2, 0.0)
    return numerator / math.sqrt(margins)
