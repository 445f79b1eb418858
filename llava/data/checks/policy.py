"""Apply a policy to bad records.

`error` refuses the file, `skip` leaves bad records out, `repair` repairs what repair.py can and leaves the
rest out. Every record left out or repaired is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llava.conversation import Conversation
from llava.data.checks.repair import TOKENS_DROPPED
from llava.data.index import SampleIndex, Samples, problem_code
from llava.errors import DataError
from llava.prompts.labels import require_supervisable
from llava.schema import Policy

ProblemOutcome = Literal["refused", "left out", "mended"]

UNFIT = "does not fit the template"


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """A problem of one record.

    Attributes:
        row: The record's row in the index.
        kind: The kind of problem, in fixed words.
        message: What is wrong, with file, place and id.
        outcome: What became of the record.
    """

    row: int
    kind: str
    message: str
    outcome: ProblemOutcome


def select_usable(
    index: SampleIndex, template: Conversation, policy: Policy
) -> tuple[Samples, list[RecordProblem]]:
    """Return the samples that a policy keeps and the problems of all records.

    Images are not checked here. Under `error`, the samples are those of the good records.
    """
    repaired = policy == "repair"
    lost = outcome_of_loss(policy)
    problems: list[RecordProblem] = []
    to_fit = index.unfit_rows(template.sep_style).tolist()
    for row in index.bad_rows.tolist():
        if repaired and TOKENS_DROPPED in index.repairs(row):
            to_fit.append(row)
        else:
            problems.append(RecordProblem(row, index.problem_kind(row), index.problem(row), lost))
    samples = Samples(index, np.arange(len(index)), repaired=repaired)
    for row in to_fit:
        try:
            require_supervisable(samples[row], template)
        except DataError as error:
            problems.append(RecordProblem(row, UNFIT, f"{index.location(row)}: {error}", lost))
    keep = np.ones(len(index), dtype=bool)
    keep[[problem.row for problem in problems]] = False
    if repaired:
        problems += [
            RecordProblem(row, kind, f"{index.location(row)}: {kind}", "mended")
            for row in index.repairable_rows.tolist()
            if keep[row]
            for kind in index.repairs(row)
        ]
    return samples.select(np.flatnonzero(keep)), problems


def outcome_of_loss(policy: Policy) -> ProblemOutcome:
    """Return what becomes of a record that is not repaired."""
    return "refused" if policy == "error" else "left out"


def raise_refused(problems: Sequence[RecordProblem], advice: str = "") -> None:
    """Raise the first refused problem, if any, with the number of problems of each kind.

    Raises:
        DataError: A problem is refused.
    """
    refused = [problem for problem in problems if problem.outcome == "refused"]
    if not refused:
        return
    first = min(refused, key=lambda problem: problem.row)
    kinds = Counter(problem.kind for problem in refused)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    total = f" (in all: {counts})" if len(refused) > 1 else ""
    raise DataError(f"{first.message}{total}{advice}", code=problem_code(first.kind))
