"""Compute scores from verdicts: accuracy over all and per type, means and sums over independent units.

The share of correct questions gets Wilson's interval, with questions taken as independent. All other scores
get the normal approximation over independent units: a soft-scored question, or an image with all its
questions (MME, POPE). See `llava.scoring.intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from llava.benchmarks.answers import Matched
from llava.schema import Answer, Question, Score, Scores, Status, Verdict
from llava.scoring import intervals
from llava.scoring.metrics import PERCENT

# Separates the answers of a verdict on several rows (MMBench).
SEPARATOR = " | "


def accuracy(verdicts: Sequence[Verdict], name: str, *, group: str = "total", over: dict[str, str]) -> Score:
    """Return the mean score in percent of the verdicts that match `over`; without value if none does."""
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
    """Return an accuracy for each value of `facet`, in the order of `names` or of first appearance."""
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
    """Return the mean over independent `units` with its normal interval.

    Args:
        name: The score's name.
        units: The value of each unit.
        group: The score's group.
        value: The official formula's number, if rounding makes it differ from the mean.
        n: The number of questions, by default that of the units.
        note: The score's note.
    """
    if not units:
        return Score(name, None, 0, group, note=note)
    values = list(units.values())
    value = fmean(values) if value is None else value
    variance = intervals.mean_variance(values)
    low, high = (None, None) if variance is None else intervals.normal(value, variance)
    kind = "none" if variance is None else "normal"
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
    """Return `scale` times a ratio of two sums over units, with its interval by the delta method.

    Args:
        name: The score's name.
        terms: Each unit's contribution to numerator and denominator.
        group: The score's group.
        value: The ratio by the official formula, 0 if the denominator is 0.
        n: The number of questions.
        scale: 100 for percent.
    """
    tops, bottoms = [top for top, _ in terms.values()], [bottom for _, bottom in terms.values()]
    if not sum(bottoms):
        return Score(name, value * scale, n, group)
    values = intervals.ratio_units(tops, bottoms)
    units = {unit: scale * term for unit, term in zip(terms, values, strict=True)}
    return mean_of_units(name, units, group=group, value=value * scale, n=n)


def share_of_units(name: str, units: dict[str, float], *, group: str = "total") -> Score:
    """Return the percentage of `units` (each 0 or 100) that are 100, with Wilson's interval."""
    if not units:
        return Score(name, None, 0, group)
    right, n = sum(value > 0 for value in units.values()), len(units)
    low, high = intervals.wilson(right, n)
    value = right / n * PERCENT
    return Score(name, value, n, group, PERCENT * low, PERCENT * high, "wilson", units=units)


def sum_of(name: str, parts: Sequence[Score], *, group: str = "total", note: str = "") -> Score:
    """Return the sum of independent means of units, such as MME's perception."""
    value, n = sum(part.value or 0.0 for part in parts), sum(part.n for part in parts)
    variances = [intervals.mean_variance(list((part.units or {}).values())) for part in parts]
    names = tuple(part.name for part in parts)
    if not parts or any(part.value is None for part in parts):
        return Score(name, None, n, group, parts=names, note=note)
    if any(variance is None for variance in variances):
        return Score(name, value, n, group, parts=names, note=note)
    low, high = intervals.normal(value, sum(variance or 0.0 for variance in variances))
    return Score(name, value, n, group, low, high, "normal", parts=names, note=note)


def not_available(name: str, why: str, *, group: str = "total") -> Score:
    """Return a score without value, with the reason as note."""
    return Score(name, None, 0, group, note=f"not available: {why}")


def answer_status(answer: Answer | None, *, is_parsed: bool) -> Status:
    """Return the status of a judged answer, None if it is missing."""
    if answer is None:
        return "unanswered"
    return "answered" if is_parsed else "unparsable"


def collect_unjudged(
    benchmark: str,
    headline: str,
    why: str,
    questions: Sequence[Question],
    matched: Matched,
    *,
    source: str,
    split: str,
) -> Scores:
    """Return scores without value for answers that only a server or judge can judge; `why` becomes a note."""
    verdicts = [
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
    score = not_available(headline, why)
    return collect(benchmark, headline, [score], verdicts, matched, source=source, split=split)


def count_statuses(verdicts: Sequence[Verdict], matched: Matched | None = None) -> dict[str, int]:
    """Count the questions, the verdicts of each status, and the duplicate answers."""
    statuses = [verdict.status for verdict in verdicts]
    return {
        "questions": len(verdicts),
        "answered": len(verdicts) - statuses.count("unanswered"),
        "unanswered": statuses.count("unanswered"),
        "unparsable": statuses.count("unparsable"),
        "duplicates": matched.duplicates if matched else 0,
    }


def match_notes(matched: Matched) -> tuple[str, ...]:
    """Return notes on answers that are missing or may belong to another question."""
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
            f"{matched.by_order} of {total} answers share their id with another question and have no "
            "prompt; they are matched by order, so a shuffled file gets wrong scores"
        )
    return tuple(notes)


def padding_note(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Return a note if wrong answers have surrounding white space, which our commands never write."""
    wrong = [v.answer for v in verdicts if v.score == 0 and v.answer is not None]
    padded = sum(text != text.strip() and SEPARATOR not in text for text in wrong)
    if not padded:
        return ()
    return (f"{padded} answers without points have white space around them, which the official rule keeps",)


def model_names(matched: Matched) -> str:
    """Return the ids of the models that wrote the answers, joined by commas."""
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
    """Return all scores of one benchmark run, with counts and notes."""
    return Scores(
        benchmark=benchmark,
        headline=headline,
        scores=tuple(scores),
        verdicts=tuple(verdicts),
        counts=count_statuses(verdicts, matched),
        source=source,
        model_id=model_names(matched),
        split=split,
        notes=(*match_notes(matched), *padding_note(verdicts), *notes),
    )
