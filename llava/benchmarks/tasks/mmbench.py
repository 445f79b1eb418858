"""MMBench dev (English, 20230712): multiple choice, asked with every rotation of the options.

Rule: a base question is correct only if every row of its group (index modulo 10^6) is. The score is the mean
over base questions: all, per L-2 category and per leaf category. It is reported for three readings of an
answer: "circular" finds the letter with `letter_rules.extract_letter` (MMBench's steps 1 and 2, no judge),
"circular_strict" accepts only the letter itself, "circular_first_character" takes the first character. The
"plain" scores judge only base rows (index < 10^6). If a base question lacks one of its rotations, as in a TSV
of base rows only, there are no circular scores.

Answers may also be an upload's xlsx, which contains question, options and truth. A TSV without answers (the
test split) is scored only by the server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from llava.benchmarks import aggregate, letter_rules
from llava.benchmarks.answers import Matched, match
from llava.benchmarks.base import Benchmark, Evaluation, Task
from llava.benchmarks.mmbench_files import (
    BLANK,
    ITEM,
    LETTERS,
    ROTATION,
    MmbenchItem,
    read_mmbench_items,
    read_mmbench_upload,
    round_of,
    short_digest,
    write_mmbench_upload,
)  # fmt: skip
from llava.errors import DataError
from llava.prompts.wording import LETTER_SUFFIX
from llava.schema import Question, Score, Scores, Status, Verdict
from llava.scoring.metrics import PERCENT

__all__ = [
    "BENCHMARK",
    "LETTERS",
    "MmbenchItem",
    "make_mmbench",
    "read_mmbench_items",
    "write_mmbench_upload",
]

SOURCE = "MMBench circular evaluation; letters by steps 1 and 2 of its matching, and strictly"
UNKNOWN = "all"
READINGS = ("", "_strict", "_first_character")
TOTALS = [f"{kind}{reading}" for kind in ("circular", "plain") for reading in READINGS]
# Base questions of each TSV with answers. Source: the TSVs. The sizes of categories are not published.
SIZES = {"dev_20230712": 1176, "dev_en_20231003": 1164, "dev_cn_20231003": 1164}
Reading = Literal["extracted", "strict", "first character"]


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row as it was asked, and the model's answer (None if missing)."""

    item: MmbenchItem
    text: str | None

    def letter(self, reading: Reading = "extracted") -> str | None:
        """Return the option letter by that reading, None if it finds none."""
        if not self.text:
            return None
        if reading == "strict":
            return letter_rules.exact_letter(self.text, LETTERS)
        if reading == "first character":
            return self.text[0]
        return letter_rules.extract_letter(self.text, dict(zip(LETTERS, self.item.options, strict=False)))


def judge(benchmark: str, tsv: str, task: Task) -> Scores:
    """Score `task.answers` against the TSV `tsv` in the root, or against the truth in an upload."""
    items = _read_truth(task, tsv)
    questions = [Question(item.index, item.text) for item in items]
    answers = list(task.answers)
    rounds = max((round_of(answer) for answer in answers), default=0)
    if rounds:
        items = [rotated for item in items for rotated in _rotations(item)]
        answers = [replace(a, question_id=f"{a.question_id}#{round_of(a)}") for a in answers]
        questions = [Question(f"{item.index}#{item.rotation}", item.text) for item in items]
    matched = match(questions, answers, allow_missing=task.allow_missing, name=benchmark)
    if not any(item.truth for item in items):
        why = "this TSV has no answers; MMBench's server has them"
        return aggregate.collect_unjudged(
            benchmark, "circular", why, questions, matched, source=SOURCE, split=task.split
        )
    invalid = [
        item for item in items if item.truth not in LETTERS[: len(item.options)] or len(item.truth) != 1
    ]
    if invalid:
        raise DataError(
            f"{benchmark}: {len(invalid)} of {len(items)} rows have no true letter, "
            f"e.g. index {invalid[0].index}: {invalid[0].truth!r} of {len(invalid[0].options)} options",
            code="wrong-label",
        )
    rows = [AskedRow(item, answer.text if answer else None) for item, answer in matched.pairs(items)]
    scores = _compute_scores(benchmark, rows, matched, task.split)
    if blank := sum(bool(answer.extra.get(BLANK)) for answer in task.answers):
        note = f"{blank} predictions of the upload are blank, an empty answer or none; they count as wrong"
        scores = replace(scores, notes=(*scores.notes, note))
    return scores


def _read_truth(task: Task, tsv: str) -> list[MmbenchItem]:
    path = task.truth or task.root / tsv
    if path.is_file():
        return read_mmbench_items(path, images=False)
    items = [answer.extra[ITEM] for answer in task.answers if ITEM in answer.extra]
    if not items or not all(item.truth for item in items):
        raise DataError(
            f"{path}: no such file, and the answers are not an upload (xlsx) that contains the truth",
            code="missing-file",
        )
    return items


def _rotations(item: MmbenchItem) -> Iterator[MmbenchItem]:
    """Yield the item of each round of --all-rounds, with the true letter moved like the options."""
    count = len(item.options)
    for rotation in range(count):
        truth = LETTERS[(LETTERS.index(item.truth) - rotation) % count] if item.truth else ""
        yield replace(item.rotate(rotation), truth=truth)


def _compute_scores(benchmark: str, rows: Sequence[AskedRow], matched: Matched, split: str) -> Scores:
    groups: dict[int, list[AskedRow]] = defaultdict(list)
    for row in rows:
        groups[row.item.group].append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row.item.index, row.item.rotation))
    plain = {key: [row for row in group if row.item.is_base] for key, group in groups.items()}
    plain = {key: group for key, group in plain.items() if group}
    verdicts = [_verdict(group) for group in groups.values()]
    incomplete = sum(not _has_all_rotations(group) for group in groups.values())
    scores = [
        *_circular_scores(groups, verdicts, incomplete),
        _group_accuracy("plain", plain, "extracted"),
        _group_accuracy("plain_strict", plain, "strict"),
        _group_accuracy("plain_first_character", plain, "first character"),
    ]
    no_option = sum(row.text is not None and row.letter() is None for row in rows)
    not_alone = sum(row.text is not None and row.letter("strict") is None for row in rows)
    notes = [
        f"{len(rows)} rows make {len(groups)} base questions; {no_option} rows name no option, "
        f"{not_alone} are not just a letter"
    ]
    if verdicts and not any(verdict.facets for verdict in verdicts):
        notes.append("no scores per category, because the table has no l2-category")
    return aggregate.collect(
        benchmark, "circular", scores, verdicts, matched, source=SOURCE, split=split, notes=notes
    )


def _has_all_rotations(group: Sequence[AskedRow]) -> bool:
    """Return whether there is a row for each option that moves ("all of the above" stays the last one)."""
    positions = [set(texts) for texts in zip_longest(*(row.item.options for row in group))]
    moving = set().union(*(texts for texts in positions if len(texts) > 1))
    return len(positions) < 2 or 1 < len(group) >= len(moving)


def _circular_scores(
    groups: Mapping[int, Sequence[AskedRow]], verdicts: Sequence[Verdict], incomplete: int
) -> list[Score]:
    """Return the scores that count a base question as correct if all its rotations are."""
    if incomplete:
        why = f"{incomplete} of {len(groups)} base questions lack rows with their options rotated; see plain"
        return [aggregate.not_available("circular", why)]
    return [
        *aggregate.accuracy_by([v for v in verdicts if v.type != UNKNOWN]),
        *aggregate.accuracy_by(verdicts, "l2-category"),
        aggregate.accuracy(verdicts, "circular", over={}),
        _group_accuracy("circular_strict", groups, "strict"),
        _group_accuracy("circular_first_character", groups, "first character"),
    ]


def _group_accuracy(name: str, groups: Mapping[int, Sequence[AskedRow]], reading: Reading) -> Score:
    """Return the share of groups in which every row is correct."""
    units = {str(key): PERCENT * _is_correct(group, reading) for key, group in groups.items()}
    return aggregate.share_of_units(name, units)


def _is_correct(group: Sequence[AskedRow], reading: Reading = "extracted") -> bool:
    return all(row.letter(reading) == row.item.truth for row in group)


def _verdict(group: Sequence[AskedRow]) -> Verdict:
    item = next((row.item for row in group if row.item.is_base), group[0].item)
    texts = [row.text for row in group]
    status: Status = "answered"
    if None in texts:
        status = "unanswered"
    elif any(row.letter() is None for row in group):
        status = "unparsable"
    return Verdict(
        question_id=item.group,
        type=item.category or UNKNOWN,
        score=float(_is_correct(group)),
        answer=aggregate.SEPARATOR.join("-" if text is None else text for text in texts),
        truth=aggregate.SEPARATOR.join(row.item.truth for row in group),
        status=status,
        facets={"l2-category": item.l2_category} if item.l2_category else {},
        question=item.text,
        asked=short_digest(*(text for row in group for text in (row.item.text, row.item.image))),
    )


def make_mmbench(name: str, title: str, splits: Sequence[str], suffix: str) -> Benchmark:
    """Build MMBench in one language.

    Args:
        name: The benchmark's name and folder.
        title: The title for tables.
        splits: The splits, the default first; each is the TSV mmbench_<split>.tsv.
        suffix: The instruction to answer by letter.
    """
    files = {split: f"mmbench_{split}.tsv" for split in splits}

    def build(root: Path, split: str) -> list[Question]:
        return [
            Question(item.index, f"{item.text}\n{suffix}", category=item.category, image_base64=item.image)
            for item in read_mmbench_items(root / files[split])
        ]

    def submit(task: Task, path: Path) -> None:
        tsv = task.truth or task.root / files[task.split]
        write_mmbench_upload(tsv, task.answers, path, name=name, allow_missing=task.allow_missing)

    return Benchmark(
        name=name,
        title=title,
        source=SOURCE,
        folder=name,
        question_files=files,
        build=build,
        judge=lambda task: judge(name, files[task.split], task),
        submit=submit,
        unit_of=lambda identifier: int(identifier) % ROTATION,
        evaluation=Evaluation(
            questions="mmbench",
            images="",
            max_new_tokens=1024,
            suffix=suffix,
            answers="answers/{file}/{name}",
            merged="answers/{file}/{name}.jsonl",
            submission="answers_upload/{file}/{name}.xlsx",
        ),
        result="circular accuracy, submission",
        submission_suffix=".xlsx",
        answers_from=read_mmbench_upload,
        needs=((files[splits[0]],),),
        needs_of={split: ((file,),) for split, file in files.items()},
        download="https://mmbench.opencompass.org.cn (images are in the TSV)",
        official_sizes={split: dict.fromkeys(TOTALS, SIZES[split]) for split in splits if split in SIZES},
    )


BENCHMARK = make_mmbench(
    "mmbench",
    "MMBench (English)",
    ("dev_20230712", "test_20230712", "dev_en_20231003", "test_en_20231003"),
    LETTER_SUFFIX,
)
