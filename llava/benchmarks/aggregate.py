"""Compute scores from verdicts: accuracy over all and per type, means and sums over independent units.

All get Wilson's interval (`llava.scoring.intervals`). A unit is a question, an image with all its questions
(MME, POPE), or a group of rows that must all be right (MMBench).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from llava.benchmarks.answers import Matched
from llava.schema import Answer, Question, Score, Scores, Status, Verdict
from llava.scoring import intervals
from llava.scoring.metrics import PERCENT

# Separates the answers of a verdict on several rows (MMBench).
SEPARATOR = " | "
# How large a share "nearly all answers" is, and how many answers may be the same by chance.
DEGENERATE_SHARE = 0.95
FEWEST_SAME = 10


def accuracy(verdicts: Sequence[Verdict], name: str, *, group: str = "total", over: dict[str, str]) -> Score:
    """Return the mean score in percent of the verdicts that match `over`; without value if none does."""
    points = [verdict.score for verdict in verdicts if verdict.matches(over)]
    if not points:
        return Score(name, None, 0, group, over=over)
    n, value = len(points), sum(points) / len(points)
    low, high = intervals.share_interval(value, intervals.mean_variance(points), n)
    return Score(name, PERCENT * value, n, group, PERCENT * low, PERCENT * high, intervals.WILSON, over=over)


def accuracy_by(
    verdicts: Sequence[Verdict], facet: str = "type", *, names: Sequence[str] | None = None
) -> list[Score]:
    """Compute the accuracy for each value of `facet`.

    `names` selects and orders the values; a name without verdicts gets a score without value.
    """
    if names is None:
        values = (verdict.facet(facet) for verdict in verdicts)
        names = list(dict.fromkeys(value for value in values if value is not None))
    return [accuracy(verdicts, name, group=facet, over={facet: name}) for name in names]


def mean_of_units(
    name: str,
    units: Mapping[str, float],
    *,
    group: str = "total",
    value: float | None = None,
    n: int = 0,
    note: str = "",
    top: float = PERCENT,
    effective: float | None = None,
    interval: Callable[[float, float, float], intervals.Interval] = intervals.share_interval,
) -> Score:
    """Return the mean over independent `units` with its interval.

    Args:
        name: The score's name.
        units: The value of each unit.
        group: The score's group.
        value: The official formula's number, if rounding makes it differ from the mean.
        n: The number of questions, by default that of the units.
        note: The score's note.
        top: The largest possible value; the smallest is 0.
        effective: How many units of equal weight would tell as much, by default their number.
        interval: Gives the interval of value / top, its variance and the number of units.
    """
    if not units:
        return Score(name, None, 0, group, note=note)
    values = list(units.values())
    value = fmean(values) if value is None else value
    known = len(values) if effective is None else effective
    low, high = interval(value / top, intervals.mean_variance(values) / top**2, known)
    return Score(
        name, value, n or len(values), group, top * low, top * high, intervals.WILSON,
        units=dict(units), top=top, effective=effective, note=note,
    )  # fmt: skip


def ratio_of_units(
    name: str,
    terms: Mapping[str, tuple[float, float]],
    *,
    group: str,
    value: float,
    n: int,
    scale: float = PERCENT,
    interval: Callable[[float, float, float], intervals.Interval] = intervals.share_interval,
) -> Score:
    """Return `scale` times a ratio of two sums over units, with its interval by the delta method.

    Args:
        name: The score's name.
        terms: Each unit's contribution to numerator and denominator; the ratio of the sums is at most 1.
        group: The score's group.
        value: The ratio by the official formula, 0 if the denominator is 0.
        n: The number of questions.
        scale: 100 for percent.
        interval: See `mean_of_units`.
    """
    tops, bottoms = [top for top, _ in terms.values()], [bottom for _, bottom in terms.values()]
    if not sum(bottoms):
        return Score(name, value * scale, n, group, 0.0, scale, intervals.WILSON, top=scale)
    values = intervals.ratio_units(tops, bottoms)
    units = {unit: scale * term for unit, term in zip(terms, values, strict=True)}
    effective = intervals.effective_units(bottoms)
    return mean_of_units(
        name, units, group=group, value=value * scale, n=n, top=scale, effective=effective, interval=interval
    )


def share_of_units(name: str, units: Mapping[str, float], *, group: str = "total") -> Score:
    """Return the percentage of `units` (each 0 or 100) that are 100, with its interval."""
    right = sum(value > 0 for value in units.values())
    return mean_of_units(name, units, group=group, value=right / max(1, len(units)) * PERCENT)


def sum_of(name: str, parts: Sequence[Score], *, group: str = "total", note: str = "") -> Score:
    """Return the sum of independent means of units, such as MME's perception."""
    value, n = sum(part.value or 0.0 for part in parts), sum(part.n for part in parts)
    names = tuple(part.name for part in parts)
    units = [list((part.units or {}).values()) for part in parts]
    if not all(units):
        return Score(name, None, n, group, parts=names, note=note)
    top = sum(part.top for part in parts)
    sizes = [(intervals.mean_variance(values), len(values)) for values in units]
    variance = intervals.sum_variance(sizes, largest=max(part.top for part in parts) ** 2 / 4)
    effective = len(parts) ** 2 / sum(1 / len(values) for values in units)
    low, high = intervals.share_interval(value / top, variance / top**2, effective)
    return Score(
        name, value, n, group, top * low, top * high, intervals.WILSON, parts=names, top=top, note=note
    )


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
        for question, answer in matched.pairs(questions)
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
    if matched.missing and matched.leaves_out:
        notes.append(
            f"limited: a sample of {total - matched.missing} of {total} questions was asked (--limit)"
        )
    elif matched.missing:
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


def degenerate_warnings(verdicts: Sequence[Verdict], matched: Matched) -> tuple[str, ...]:
    """Return a warning if nearly all answers are empty, unparsable, or the same.

    A broken model or a wrong prompt gives such answers, and some rules still score them: all answers empty
    are all "yes" in POPE, an F1 of 67. Nearly all means `DEGENERATE_SHARE`. No benchmark's truth comes near
    it: the most common true answer is 51.5 % of POPE's random list, 40 % of ScienceQA, 26 % of SEED-Bench,
    and LLaVA-1.5-13B says "unanswerable" to 30 % of VizWiz (counted in the official files). Of fewer than
    `FEWEST_SAME` answers all may be the same by chance; ten yes/no answers are so once in 500 times. A same
    answer that is also nearly always the true one is no fault. What a rule reads as the same (POPE's and
    MME's yes or no) is the same. A judge's grades come without answers, so only failed grades are warned of.
    """
    answered = [verdict for verdict in verdicts if verdict.status != "unanswered"]
    may_repeat = _is_usual_truth(answered)
    has_text = any(verdict.answer is not None for verdict in answered)
    texts = [answer.text for answer in matched.answers if answer and has_text]
    readings = [verdict.facets["says"] for verdict in answered if "says" in verdict.facets]
    unparsable = sum(verdict.status == "unparsable" for verdict in answered)
    if answered and unparsable >= DEGENERATE_SHARE * len(answered):
        what = f"{unparsable} of {len(answered)} answers cannot be parsed"
        return degenerate_texts(texts) or (f"{what}: check the prompt and the model",)
    return degenerate_texts(texts, may_repeat=may_repeat) or degenerate_texts(readings, may_repeat=may_repeat)


def degenerate_texts(texts: Sequence[str], *, may_repeat: bool = False) -> tuple[str, ...]:
    """Return a warning if nearly all `texts` are empty, or, unless they `may_repeat`, the same.

    `degenerate_warnings` explains the rule. Case and final periods make no difference.
    """
    words = [text.strip().casefold().rstrip(".") or text.strip() for text in texts]
    word, same = Counter(words).most_common(1)[0] if words else ("", 0)
    is_chance = bool(word) and (may_repeat or len(words) < FEWEST_SAME)
    if not words or is_chance or same < DEGENERATE_SHARE * len(words):
        return ()
    what = f"{same} of {len(words)} answers are {repr(word[:40]) if word else 'empty'}"
    return (f"{what}: the scores say nothing about the model",)


def _is_usual_truth(verdicts: Sequence[Verdict]) -> bool:
    """Return whether nearly all questions have one and the same true answer."""
    truths = Counter(verdict.truth for verdict in verdicts if verdict.truth)
    return bool(truths) and truths.most_common(1)[0][1] >= DEGENERATE_SHARE * len(verdicts)


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
    judge: str = "",
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
        judge=judge,
        warnings=degenerate_warnings(verdicts, matched),
    )
