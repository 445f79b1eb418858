"""What becomes of records that are not as they must be.

`error` refuses the file, `skip` leaves such records out, `repair` mends what repair.py can mend and leaves
the rest out. Nothing is left out or mended uncounted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llava.conversation import Conversation
from llava.data.checks.repair import TOKENS_DROPPED, mend
from llava.data.index import SampleIndex, Samples
from llava.errors import DataError
from llava.prompts.labels import require_fit

Policy = Literal["error", "skip", "repair"]
Outcome = Literal["refused", "left out", "mended"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

UNFIT = "does not fit the template"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one record: its row in the index, the kind, the details, and what became of the record."""

    row: int
    kind: str
    message: str
    outcome: Outcome


def choose(index: SampleIndex, template: Conversation, policy: Policy) -> tuple[Samples, list[Problem]]:
    """The samples that a policy leaves of a file, and all that was wrong with its records.

    Images are not looked at here. Under `error` the samples are those of the good records.
    """
    mends = policy == "repair"
    lost: Outcome = "refused" if policy == "error" else "left out"
    problems: list[Problem] = []
    rows = np.ones(len(index), dtype=bool)
    doubtful = index.unfit_rows(template.sep_style).tolist()
    for row in index.bad_rows.tolist():
        if mends and TOKENS_DROPPED in index.mended(row):
            doubtful.append(row)
        else:
            problems.append(Problem(row, index.kind(row), index.problem(row), lost))
    for row in doubtful:
        sample = mend(index[row])[0] if mends else index[row]
        try:
            require_fit(sample, template)
        except DataError as error:
            problems.append(Problem(row, UNFIT, f"{index.where(row)}: {error}", lost))
    rows[[problem.row for problem in problems]] = False
    if mends:
        problems += [
            Problem(row, kind, f"{index.where(row)}: {kind}", "mended")
            for row in index.mendable_rows.tolist()
            if rows[row]
            for kind in index.mended(row)
        ]
    return Samples(index, np.flatnonzero(rows), mended=mends), problems


def refuse(problems: Sequence[Problem], advice: str = "") -> None:
    """Raise the first problem that is refused, if any, with a count of all by kind.

    Raises:
        DataError: There is one.
    """
    refused = [problem for problem in problems if problem.outcome == "refused"]
    if not refused:
        return
    first = min(refused, key=lambda problem: problem.row).message
    kinds = Counter(problem.kind for problem in refused)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    raise DataError(f"{first}{f' (in all: {counts})' if len(refused) > 1 else ''}{advice}")
