"""Say whether another round is worth it: the stop rule, with its chance of error divided in advance.

Each planned round is tested once, its model against the one before it, on the same hold-out. With 3 planned
rounds each test has significance 0.05 / 3 (Bonferroni), so the chance of any false gain is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.data_engine.loop.gains import Gain, gain_row
from llava.data_engine.loop.power import SIGNIFICANCE
from llava.data_engine.loop.score import HeldOut, gain_on
from llava.schema import JsonObject
from llava.scoring.metrics import format_interval


def judge_rounds(models: Sequence[tuple[int, HeldOut | None]], before: HeldOut, planned: int) -> JsonObject:
    """Return the verdict, the reason for it, and each round's test.

    Args:
        models: Of each round its number and its model, None if it is not scored yet.
        before: The base model.
        planned: How many rounds share the chance of a false gain, as the first round set it.

    Returns:
        `verdict` is "wait" (a round is not scored), "continue" (the last round's gain is clear), "stop" (it
        is not) or "done" (the planned rounds are over).
    """
    threshold = SIGNIFICANCE / planned
    tests, last = [], before
    for number, model in models:
        if model is None:
            continue
        gain = gain_on(last, model)
        tests.append(_test(number, gain, threshold, planned))
        last = model
    verdict, reason = _conclude([number for number, model in models if model is None], tests, planned)
    return {
        "significance": SIGNIFICANCE,
        "planned": planned,
        "threshold": threshold,
        "verdict": verdict,
        "reason": reason,
        "tests": tests,
    }


def _test(number: int, gain: Gain, threshold: float, planned: int) -> JsonObject:
    covered = number <= planned
    passed = covered and gain.value > 0 and gain.p < threshold
    return {"round": number, **gain_row(gain), "covered": covered, "passed": passed}


def _conclude(waiting: Sequence[int], tests: Sequence[JsonObject], planned: int) -> tuple[str, str]:
    if waiting:
        return "wait", f"Round {waiting[0]} is not scored yet."
    last = tests[-1]
    number, interval = last["round"], format_interval(last["low"], last["high"])
    figures = f"{last['value']:+.2f} {interval}, p = {last['p']:.3g}"
    if not last["covered"]:
        return (
            "done",
            f"Round {number} is beyond the {planned} planned; a gain of it ({figures}) is no evidence.",
        )
    outcome = "is clear" if last["passed"] else "is within noise"
    reason = f"The gain of round {number} {outcome} ({figures})"
    if number >= planned:
        return "done", f"{reason}; all {planned} planned rounds are over."
    return ("continue", f"{reason}.") if last["passed"] else ("stop", f"{reason}.")
