"""MMBench dev (English, 20230712): multiple choice asked in every rotation of its options.

Rule: a base question counts only when every row of its group (index modulo 10^6) is right; the overall number
is the mean over base questions, and so per L-2 category and per leaf category. Three readings of an answer
are reported side by side: "circular" takes the letter by `letters.extract` (MMBench's steps 1 and 2, no
judge), "circular_strict" wants the letter and nothing else, "circular_first_character" looks at that alone.
"plain" and its kin judge base rows (index < 10^6) only.

Answers may also come as an upload's xlsx, which carries question, options and truth itself. A TSV without
answers (the test split) is not scored here: the server does that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llava.benchmarks import aggregate, letter_rules
from llava.benchmarks.answers import Matched, match
from llava.benchmarks.base import Benchmark, Evaluation, Task
from llava.benchmarks.mmbench_files import (
    BLANK,
    ITEM,
    LETTERS,
    MmbenchItem,
    read_mmbench_items,
    read_mmbench_upload,
    round_of,
    write_mmbench_upload,
)  # fmt: skip
from llava.errors import DataError
from llava.prompts.wording import LETTER_SUFFIX
from llava.schema import Question, Score, Scores, Status, Verdict
from llava.scoring.metrics import PERCENT

__all__ = ["BENCHMARK", "LETTERS", "MmbenchItem", "make", "read_mmbench_items", "write_mmbench_upload"]

SOURCE = "MMBench circular evaluation; letters by steps 1 and 2 of its matching, and strictly"
UNKNOWN = "all"
Reading = Literal["extracted", "strict", "first character"]


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row as the model saw it, what it said (None: nothing) and the readings of that."""

    item: MmbenchItem
    said: str | None

    def letter(self, reading: Reading = "extracted") -> str | None:
        """The option letter meant, None when that reading finds none."""
        if not self.said:
            return None
        if reading == "strict":
            return letter_rules.exact(self.said, LETTERS)
        if reading == "first character":
            return self.said[0]
        return letter_rules.extract(self.said, dict(zip(LETTERS, self.item.options, strict=False)))


def judge(benchmark: str, tsv: str, task: Task) -> Scores:
    """Score `task.answers` against the TSV `tsv` under the root, or against an upload's own truth."""
    items = _truth(task, tsv)
    questions = [Question(item.index, item.text) for item in items]
    given = [answer for answer in task.answers if not answer.extra.get(BLANK)]
    rounds = max((round_of(answer) for answer in given), default=0)
    if rounds:
        items = [turned for item in items for turned in _rotations(item)]
        given = [replace(a, question_id=f"{a.question_id}#{round_of(a)}") for a in given]
        questions = [Question(f"{item.index}#{item.turned}", item.text) for item in items]
    matched = match(questions, given, allow_missing=task.allow_missing, name=benchmark)
    if not any(item.truth for item in items):
        score = aggregate.not_available("circular", "this TSV has no answers; MMBench's server has them")
        verdicts = aggregate.unjudged(questions, matched)
        return aggregate.collect(
            benchmark, "circular", [score], verdicts, matched, source=SOURCE, split=task.split
        )
    odd = [item for item in items if item.truth not in LETTERS[: len(item.options)] or len(item.truth) != 1]
    if odd:
        raise DataError(
            f"{benchmark}: {len(odd)} of {len(items)} rows have no true letter, e.g. index {odd[0].index}: "
            f"{odd[0].truth!r} of {len(odd[0].options)} options"
        )
    rows = [
        AskedRow(item, answer.text if answer else None)
        for item, answer in zip(items, matched.answers, strict=True)
    ]
    return _scores_of(benchmark, rows, matched, task.split)


def _truth(task: Task, tsv: str) -> list[MmbenchItem]:
    path = task.truth or task.root / tsv
    if path.is_file():
        return read_mmbench_items(path, images=False)
    items = [answer.extra[ITEM] for answer in task.answers if ITEM in answer.extra]
    if not items or not all(item.truth for item in items):
        raise DataError(
            f"{path}: no such file, and the answers are no upload (xlsx) that brings the truth along"
        )
    return items


def _rotations(item: MmbenchItem) -> Iterator[MmbenchItem]:
    """The rounds of --all-rounds: options move left by one each time, and the true letter with them."""
    count = len(item.options)
    for turned in range(count):
        truth = LETTERS[(LETTERS.index(item.truth) - turned) % count] if item.truth else ""
        yield replace(item.rotate(turned), truth=truth)


def _scores_of(benchmark: str, rows: Sequence[AskedRow], matched: Matched, split: str) -> Scores:
    groups: dict[int, list[AskedRow]] = defaultdict(list)
    for row in rows:
        groups[row.item.group].append(row)
    plain = {key: [row for row in group if row.item.is_base] for key, group in groups.items()}
    plain = {key: group for key, group in plain.items() if group}
    verdicts = [_verdict(group) for group in groups.values()]
    scores = [
        *aggregate.accuracy_by([v for v in verdicts if v.type != UNKNOWN]),
        *aggregate.accuracy_by(verdicts, "l2-category"),
        aggregate.accuracy(verdicts, "circular", over={}),
        _alike("circular_strict", groups, "strict"),
        _alike("circular_first_character", groups, "first character"),
        _alike("plain", plain, "extracted"),
        _alike("plain_strict", plain, "strict"),
        _alike("plain_first_character", plain, "first character"),
    ]
    unreadable = sum(row.said is not None and row.letter() is None for row in rows)
    notes = [
        f"{len(rows)} rows make {len(groups)} base questions; {unreadable} rows name no option, "
        f"{sum(row.said is not None and row.letter('strict') is None for row in rows)} are not a letter alone"
    ]
    if verdicts and not any(verdict.facets for verdict in verdicts):
        notes.append("no categories: they stand in the TSV, which is not here")
    return aggregate.collect(
        benchmark, "circular", scores, verdicts, matched, source=SOURCE, split=split, notes=notes
    )


def _alike(name: str, groups: Mapping[int, Sequence[AskedRow]], reading: Reading) -> Score:
    """The share of groups in which every row is right."""
    units = {str(key): PERCENT * _all_right(group, reading) for key, group in groups.items()}
    return aggregate.share_of_units(name, units)


def _all_right(group: Sequence[AskedRow], reading: Reading = "extracted") -> bool:
    return all(row.letter(reading) == row.item.truth for row in group)


def _verdict(group: Sequence[AskedRow]) -> Verdict:
    item = next((row.item for row in group if row.item.is_base), group[0].item)
    said = [row.said for row in group]
    status: Status = "answered"
    if None in said:
        status = "unanswered"
    elif any(row.letter() is None for row in group):
        status = "unparsable"
    return Verdict(
        question_id=item.group,
        type=item.category or UNKNOWN,
        score=float(_all_right(group)),
        answer=aggregate.JOINED.join("-" if text is None else text for text in said),
        truth=aggregate.JOINED.join(row.item.truth for row in group),
        status=status,
        facets={"l2-category": item.l2_category} if item.l2_category else {},
        question=item.text,
    )


def make(name: str, title: str, splits: Sequence[str], suffix: str) -> Benchmark:
    """MMBench in one language: its TSVs, the usual first, and the sentence that asks for a letter."""
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
    )


BENCHMARK = make(
    "mmbench",
    "MMBench (English)",
    ("dev_20230712", "test_20230712", "dev_en_20231003", "test_en_20231003"),
    LETTER_SUFFIX,
)
