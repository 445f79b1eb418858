"""Verdicts made into scores: accuracy over all and per type, means and sums over independent units.

Intervals: Wilson's for the share of questions that are right (questions taken as independent); the normal
approximation for everything else, over the units that are independent (a soft-scored question, an MME image
with both its questions, an image of POPE). See `llava.scoring.intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from llava.benchmarks.answers import Matched
from llava.schema import Question, Score, Scores, Verdict
from llava.scoring import intervals
from llava.scoring.metrics import PERCENT

# Between the answers of a verdict that is about several (MMBench).
JOINED = " | "


def accuracy(verdicts: Sequence[Verdict], name: str, *, group: str = "total", over: dict[str, str]) -> Score:
    """The mean score in percent of the verdicts that `over` selects; no value when it selects none."""
    points = [verdict.score for verdict in verdicts if verdict.matches(over)]
    if not points:
        return Score(name, None, 0, group, over=over)
    n, value = len(points), sum(points) / len(points) * PERCENT
    if all(point in (0.0, 1.0) for point in points):
        low, high = intervals.wilson(sum(points), n)
        return Score(name, value, n, group, PERCENT * low, PERCENT * high, "wilson", over=over)
    bounds = intervals.mean(points)
    if bounds is None:
        return Score(name, value, n, group, over=over)
    low, high = (min(1.0, max(0.0, bound)) for bound in bounds)
    return Score(name, value, n, group, PERCENT * low, PERCENT * high, "normal", over=over)


def accuracy_by(
    verdicts: Sequence[Verdict], facet: str = "type", *, names: Sequence[str] | None = None
) -> list[Score]:
    """One accuracy for each value of `facet`, in `names`' order, else in order of first appearance."""
    if names is None:
        values = (verdict.facet(facet) for verdict in verdicts)
        names = list(dict.fromkeys(value for value in values if value is not None))
    return [accuracy(verdicts, name, group=facet, over={facet: name}) for name in names]


def mean_of_units(
    name: str,
    units: dict[str, float],
    *,
    group: str = "total",
    value: float | None = None,
    n: int = 0,
    note: str = "",
) -> Score:
    """The mean over independent `units` with its normal interval.

    `value` is the official formula's number where it differs from that mean by rounding; `n` (usually the
    questions behind the units) defaults to how many units there are.
    """
    if not units:
        return Score(name, None, 0, group, note=note)
    values = list(units.values())
    value = fmean(values) if value is None else value
    spread = intervals.mean_variance(values)
    low, high = (None, None) if spread is None else intervals.normal(value, spread)
    kind = "none" if spread is None else "normal"
    return Score(name, value, n or len(values), group, low, high, kind, units=units, note=note)


def ratio_of_units(
    name: str,
    terms: Mapping[str, tuple[float, float]],
    *,
    group: str,
    value: float,
    n: int,
    scale: float = PERCENT,
) -> Score:
    """`value` (of 1), a ratio of two sums over units, times `scale`, with its interval by the delta method.

    Args:
        name: The score's name.
        terms: What each unit adds to the ratio's top and bottom.
        group: The score's group.
        value: The official formula's number, which is 0 where the bottom is.
        n: How many questions there are.
        scale: 100 for percent.
    """
    tops, bottoms = [top for top, _ in terms.values()], [bottom for _, bottom in terms.values()]
    if not sum(bottoms):
        return Score(name, value * scale, n, group)
    values = intervals.ratio_units(tops, bottoms)
    units = {unit: scale * part for unit, part in zip(terms, values, strict=True)}
    return mean_of_units(name, units, group=group, value=value * scale, n=n)


def share_of_units(name: str, units: dict[str, float], *, group: str = "total") -> Score:
    """The share in percent of `units` (each 0 or 100) that are 100, with Wilson's interval."""
    if not units:
        return Score(name, None, 0, group)
    right, n = sum(value > 0 for value in units.values()), len(units)
    low, high = intervals.wilson(right, n)
    value = right / n * PERCENT
    return Score(name, value, n, group, PERCENT * low, PERCENT * high, "wilson", units=units)


def sum_of(name: str, parts: Sequence[Score], *, group: str = "total", note: str = "") -> Score:
    """The sum of independent scores that are means of units, such as MME's perception."""
    value, n = sum(part.value or 0.0 for part in parts), sum(part.n for part in parts)
    spreads = [intervals.mean_variance(list((part.units or {}).values())) for part in parts]
    names = tuple(part.name for part in parts)
    if not parts or any(part.value is None for part in parts):
        return Score(name, None, n, group, parts=names, note=note)
    if any(spread is None for spread in spreads):
        return Score(name, value, n, group, parts=names, note=note)
    low, high = intervals.normal(value, sum(spread or 0.0 for spread in spreads))
    return Score(name, value, n, group, low, high, "normal", parts=names, note=note)


def not_available(name: str, why: str, *, group: str = "total") -> Score:
    """A score that cannot be had here, and why."""
    return Score(name, None, 0, group, note=f"not available: {why}")


def unjudged(questions: Sequence[Question], matched: Matched) -> list[Verdict]:
    """Verdicts for answers that only a server can judge: what was said, and no points."""
    return [
        Verdict(
            question_id=question.id,
            type=question.category,
            score=0.0,
            answer=answer.text if answer else None,
            truth="",
            status="unanswered" if answer is None else "unjudged",
            image=question.image,
            question=question.text,
        )
        for question, answer in zip(questions, matched.answers, strict=True)
    ]


def counts(verdicts: Sequence[Verdict], matched: Matched | None = None) -> dict[str, int]:
    """How many questions there are, and how their answers fared."""
    by_status = [verdict.status for verdict in verdicts]
    return {
        "questions": len(verdicts),
        "answered": len(verdicts) - by_status.count("unanswered"),
        "unanswered": by_status.count("unanswered"),
        "unparsable": by_status.count("unparsable"),
        "duplicates": matched.duplicates if matched else 0,
    }


def warnings(matched: Matched) -> tuple[str, ...]:
    """What the scores must say about answers that are missing or look like another question's."""
    notes = []
    total = len(matched.answers)
    if matched.missing:
        notes.append(
            f"{matched.missing} of {total} questions have no answer and count as wrong (--allow-missing)"
        )
    if matched.other_prompts:
        notes.append(
            f"{matched.other_prompts} of {total} answers were given to another prompt than this question"
        )
    if matched.by_order:
        notes.append(
            f"{matched.by_order} of {total} answers share their id with another question and carry no "
            "prompt; they are put to them by order, so a shuffled file scores wrongly"
        )
    return tuple(notes)


def padding_note(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """A warning when answers without points have white space around them: no model command writes such."""
    said = [v.answer for v in verdicts if v.score == 0 and v.answer is not None]
    padded = sum(text != text.strip() and JOINED not in text for text in said)
    if not padded:
        return ()
    return (f"{padded} answers without points have white space around them, which the official rule keeps",)


def model_of(matched: Matched) -> str:
    """The model that wrote the answers, as the rows say; several are joined by commas."""
    return ",".join(sorted({answer.model_id for answer in matched.answers if answer and answer.model_id}))


def collect(
    benchmark: str,
    headline: str,
    scores: Sequence[Score],
    verdicts: Sequence[Verdict],
    matched: Matched,
    *,
    source: str,
    split: str,
    notes: Sequence[str] = (),
) -> Scores:
    """Everything a judge found out, as one value."""
    return Scores(
        benchmark=benchmark,
        headline=headline,
        scores=tuple(scores),
        verdicts=tuple(verdicts),
        counts=counts(verdicts, matched),
        source=source,
        model_id=model_of(matched),
        split=split,
        notes=(*warnings(matched), *padding_note(verdicts), *notes),
    )
