"""Pair the questions of two scored runs by id, and refuse pairs that are not the same question."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from llava.errors import DataError, shown
from llava.schema import Scores, Verdict

logger = logging.getLogger(__name__)
SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One metrics.json: its short name in the table, its scores and its path."""

    name: str
    scores: Scores
    path: Path = Path()


def align(base: ComparedRun, run: ComparedRun) -> Scores:
    """Return the scores of `run` with its verdicts in the order of the baseline's, matched by id.

    Raises:
        DataError: A question is only in one of them, or is another question; the message names the first. Or
            two judges graded them.
    """
    judges = [r.scores.judge for r in (base, run)]
    if all(judges) and len(set(judges)) > 1:
        raise DataError(
            f"{base.name} and {run.name}: {base.scores.benchmark} was judged by {' and by '.join(judges)}, "
            "whose grades do not compare; let one judge grade both",
            code="different-judges",
        )
    if any(judges) and not all(judges):
        lacking = base if run.scores.judge else run
        logger.warning(f"{lacking.path}: does not say who judged it; {max(judges)} judged the other run")
    left: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in run.scores.verdicts:
        left[str(verdict.question_id)].append(verdict)
    tell = _what_tells_questions_apart(base, run)
    aligned = []
    for verdict in base.scores.verdicts:
        twins = left[str(verdict.question_id)]
        if not twins:
            raise _different(base, run, f"question {verdict.question_id} is only in {base.name}")
        known = tell(verdict)
        # Ids may repeat (MME); then the text tells which of them it is.
        same = (twin for twin in twins if len(twins) == 1 or tell(twin) == known)
        twin = next(same, twins[0])
        for what, value in tell(twin).items():
            if value != known[what]:
                shown = " and ".join(_first_difference(known[what], value))
                raise _different(base, run, f"the {what} of question {verdict.question_id} is {shown}")
        twins.remove(twin)
        aligned.append(twin)
    if extra := next((key for key, twins in left.items() if twins), None):
        raise _different(base, run, f"question {extra} is only in {run.name}")
    return replace(run.scores, verdicts=tuple(aligned))


def _what_tells_questions_apart(base: ComparedRun, run: ComparedRun) -> Callable[[Verdict], dict[str, str]]:
    """Return a function that lists what must be the same in both runs, by a word for it.

    What one of them does not hold at all, such as an older file, is left out with a warning.
    """
    facets = {name for run_ in (base, run) for score in run_.scores.scores for name in score.over or ()}
    readers: dict[str, Callable[[Verdict], str | None]] = {
        "text": lambda verdict: verdict.question,
        "image": lambda verdict: verdict.image,
        "options or image": lambda verdict: verdict.asked,
        **{name: partial(Verdict.facet, name=name) for name in sorted(facets | {"type"})},
        "truth": lambda verdict: verdict.truth,
    }
    for what, read in list(readers.items()):
        lacking = [r for r in (base, run) if not any(read(verdict) for verdict in r.scores.verdicts)]
        if len(lacking) == 1:
            del readers[what]
            logger.warning(
                f"{lacking[0].path}: does not hold the {what} of its questions, so they are compared without "
                "it; score the answers again to be sure"
            )
    return lambda verdict: {what: str(read(verdict)) for what, read in readers.items()}


def _first_difference(one: str, two: str) -> list[str]:
    """Return the parts of two texts from shortly before their first difference, short enough to show."""
    pairs = enumerate(zip_longest(one, two))
    start = max(0, next(at for at, (a, b) in pairs if a != b) - SHOWN_CHARACTERS // 3)
    before = "..." if start else ""
    return [shown(before + text[start : start + SHOWN_CHARACTERS]) for text in (one, two)]


def _different(base: ComparedRun, run: ComparedRun, difference: str) -> DataError:
    counts = [f"{r.name} ({len(r.scores.verdicts)} questions)" for r in (base, run)]
    return DataError(
        f"{' and '.join(counts)} were scored on different questions of {base.scores.benchmark}: "
        f"{difference}; score both on the same ones",
        code="different-questions",
    )
