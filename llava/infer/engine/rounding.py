"""Decide which answers rounding in a batch could have changed. Needs no torch.

Sums in another order round differently, so an answer's lead (`Reply.lead`) is not quite the same in a batch
as alone. Where it is near zero, another token may win: that is a close call, and is computed again alone. How
far leads move depends on the model and the machine, so it is measured: the first answers are computed both
ways, too, and from then on the limit is six times the root mean square.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llava.schema import JsonObject

# A rounding step is the precision's epsilon: what rounding moves a logit by, relative to the largest one.
STEPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# The limit until enough is measured: 64, 8 and 4 steps. scripts/bench/README.md says why.
CLOSE_LEADS = {
    dtype: count * STEPS[dtype] for dtype, count in (("float32", 64), ("float16", 8), ("bfloat16", 4))
}

_DEVIATIONS = 6.0
_ENOUGH = 8  # answers computed both ways, from which on the limit may fall to half the usual one
# So many of the first answers are computed both ways. A batch answers up to 17 times as fast as one prompt at
# a time, so one in 1024 takes at most 2 % of the time. Half precision has a few in any run to learn from.
_MEASURED_SHARE, _MOST_MEASURED = 1024, 16
_LEAST_MEASURED = {"float32": 0, "float16": 4, "bfloat16": 4}
_LAST_POWER = 8  # leads of 128 rounding steps and more are one column of the histogram


class CloseCalls:
    """Says of each answer of a run whether it is a close call, by what was measured so far."""

    def __init__(self, dtype: str, requests: int) -> None:
        """Begin a run in which so many requests are answered in this precision."""
        self._usual, self._step = CLOSE_LEADS[dtype], STEPS[dtype]
        self._first = min(max(requests // _MEASURED_SHARE, _LEAST_MEASURED[dtype]), _MOST_MEASURED)
        self._moves: list[float] = []
        self._leads: Counter[int] = Counter()
        self.limit = self._usual
        """An answer with a smaller lead is a close call."""

    def judge(self, lead: float) -> Literal["close", "certain", "open"]:
        """Say whether an answer with this lead in a batch is a close call, which all of the first are, too.

        It is open if a limit twice as large would make it one: `limit` says so when all answers are there.
        """
        self._leads[min(max(math.frexp(lead / self._step)[1], 0), _LAST_POWER)] += 1
        if lead < self.limit or len(self._moves) < self._first:
            return "close"
        return "open" if lead < 2 * self.limit else "certain"

    def measure(self, lead: float, lead_in_batch: float) -> None:
        """Take account of an answer that was computed both ways."""
        self._moves.append(abs(lead - lead_in_batch))
        least = self._usual / 2 if len(self._moves) >= _ENOUGH else self._usual
        self.limit = limit_by(self._moves, least)

    def describe(self) -> str:
        """Describe what was measured, in a line for the log."""
        steps = [f"{self._leads[power]} under {2**power}" for power in range(_LAST_POWER)]
        noise = _root_mean_square(self._moves) / self._step
        return (
            f"in a batch their leads moved by {noise:.2g} rounding steps (root mean square of "
            f"{len(self._moves)}), the limit is {self.limit / self._step:.3g}; leads in steps: "
            f"{', '.join(steps)}, {self._leads[_LAST_POWER]} more"
        )


def limit_by(moves: Sequence[float], least: float) -> float:
    """Return the limit for close calls where leads moved so: six times the root mean square, or `least`."""
    return max(least, _DEVIATIONS * _root_mean_square(moves))


def describe_rounding(both: Iterable[tuple[float, float]], dtype: str) -> JsonObject:
    """Return what is worth knowing of a run's answers that were computed both ways.

    Args:
        both: Of each its lead, and its lead in the batch, which is negative if another answer was ahead.
        dtype: The precision.

    Returns:
        How many they are (`asked_again`), how many were different in the batch (`changed`), and by how many
        rounding steps leads moved, their root mean square (`noise`, None if there are none).
    """
    pairs = list(both)
    moves = [abs(lead - lead_in_batch) / STEPS[dtype] for lead, lead_in_batch in pairs]
    return {
        "asked_again": len(pairs),
        "changed": sum(math.copysign(1.0, lead_in_batch) < 0 for _, lead_in_batch in pairs),
        "noise": round(_root_mean_square(moves), 4) if moves else None,
    }


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / max(len(values), 1))
