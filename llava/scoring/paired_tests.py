"""Paired tests of the difference between two runs over the same questions, and their correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from types import ModuleType

from llava.errors import SettingsError

# With as many changes the normal approximation gives the same p as the resampled signs.
_MANY = 1_000
_RESAMPLES = 9_999


def sign_test(changes: Sequence[float]) -> float:
    """Return the two-sided p of the sign test; where all is right or wrong it is McNemar's exact test.

    Args:
        changes: Each unit's later value minus its earlier one.
    """
    binomtest = _scipy_stats().binomtest
    up, down = (sum(sign * change > 0 for change in changes) for sign in (1, -1))
    return float(binomtest(up, up + down).pvalue) if up + down else 1.0


def sign_flip_test(changes: Sequence[float]) -> float:
    """Return the two-sided p of a sum of changes, if each had been as likely in the other direction.

    It is exact where all changes are equally large (McNemar's test) or few. Otherwise signs are drawn 9,999
    times with a fixed seed, so that equal runs give equal p; above 1,000 changes the sum is taken as normal.

    Source: R. A. Fisher, The Design of Experiments (1935), section 21.

    Args:
        changes: Each unit's change, with its weight in the sum.
    """
    moved = [change for change in changes if change]
    if len({abs(change) for change in moved}) <= 1:
        return sign_test(moved)
    squares, fourths = (math.fsum(change**power for change in moved) for power in (2, 4))
    if squares**2 > _MANY * fourths:
        return 2 * NormalDist().cdf(-abs(math.fsum(moved)) / math.sqrt(squares))
    result = _scipy_stats().permutation_test(
        (moved,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_MANY,
        rng=0,
    )
    return float(result.pvalue)


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        raise SettingsError(
            f"paired tests need scipy: pip install 'llava[plot]' ({error})", code="missing-package"
        ) from error
    return stats


def holm(values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in their order.

    The chance that any adjusted value is below 0.05 where there is no difference is at most 5 %, however the
    tests depend on each other: types share images, and models share questions.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    adjusted = [1.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
