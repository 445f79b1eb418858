"""MMBench dev (English, 20230712): multiple choice asked in every rotation of its options.

Rule: a base question counts only when every row of its group (index modulo 10^6) is right; the overall number
is the mean over base questions, and so per L-2 category and per leaf category. Three readings of an answer
are reported side by side: "circular" takes the letter by `_letters.extract` (MMBench's steps 1 and 2, no
judge), "circular_strict" wants the letter and nothing else, "circular_first_character" looks at that alone.
"plain" and its kin judge base rows (index < 10^6) only.

The TSV is read as text with no word taken for "missing": an option or hint is absent only when its cell is
empty. (The original also drops the literal options "None", "nan" and "NA"; the public files have none.) The
upload is made by the original's own pandas calls, so its cells are equal. Answers may also come as an
upload's xlsx, which carries question, options and truth itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llava.benchmarks import _letters, _scores
from llava.benchmarks._answers import Matched, match, read_answers
from llava.benchmarks._base import LETTER, Benchmark, Task, options_text
from llava.errors import DataError
from llava.files import atomic_write
from llava.schema import Answer, Question, Score, Scores, Status, Verdict

SOURCE = "MMBench circular evaluation; letters by steps 1 and 2 of its matching, and strictly"
ROTATION = 1_000_000
LETTERS = "ABCD"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6
PERCENT = 100.0
UNKNOWN = "all"
Reading = Literal["extracted", "strict", "first character"]
# What `read_upload` leaves in an answer: the row it stood in, and whether its cell was empty.
ITEM, BLANK = "item", "blank"


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the TSV: a base question or one of its rotations. `image` is base64."""

    index: int
    question: str
    hint: str
    options: tuple[str, ...]
    truth: str
    category: str = ""
    l2_category: str = ""
    image: str = field(default="", repr=False)
    turned: int = 0

    @property
    def is_base(self) -> bool:
        """Whether this is the question as written, not one of its rotations."""
        return self.index < ROTATION and self.turned == 0

    @property
    def group(self) -> int:
        """The index of the base question."""
        return self.index % ROTATION

    @property
    def text(self) -> str:
        """Hint, question and options as asked, without the sentence that asks for a letter."""
        hint = f"{self.hint}\n" if self.hint else ""
        return options_text(hint + self.question, self.options)


def read_items(path: Path) -> list[Item]:
    """The rows of an MMBench TSV in its order.

    Raises:
        DataError: The file is missing, lacks a column, or an index is not a number.
    """
    import pandas

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    missing = {"index", "question", "A", "B", "answer"} - set(table.columns)
    if missing:
        raise DataError(f"{path}:1: no column {', '.join(sorted(missing))} in this TSV")
    rows = table.to_dict("records")
    return [_item(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _item(row: dict[Any, Any], where: str) -> Item:
    try:
        index = int(row["index"])
    except ValueError as error:
        raise DataError(f"{where}: index is {row['index']!r}, wanted a number") from error
    options = [_cell(row, letter) for letter in LETTERS]
    count = options.index("") if "" in options else len(options)
    return Item(
        index=index,
        question=_cell(row, "question"),
        hint=_cell(row, "hint"),
        options=tuple(options[:count]),
        truth=_cell(row, "answer"),
        category=_cell(row, "category"),
        l2_category=_cell(row, "l2-category"),
        image=_cell(row, "image"),
    )


def _cell(row: dict[Any, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value)


def read_upload(path: Path) -> list[Answer]:
    """The rows of an upload's xlsx (question and truth in `extra`), or those of any other answers file."""
    if path.suffix != ".xlsx":
        return read_answers(path)
    answers = []
    for number, row in enumerate(_sheet(path), start=2):
        item = _item(row, f"{path}: row {number}")
        said = row["prediction"]
        answers.append(
            Answer(item.index, item.text, _cell(row, "prediction"), extra={ITEM: item, BLANK: said is None})
        )
    return answers


def _sheet(path: Path) -> Iterator[dict[str, Any]]:
    import openpyxl

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    book = openpyxl.load_workbook(path, read_only=True)
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = [str(cell) for cell in next(rows)]
    missing = {"index", "prediction"} - set(header)
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))} in this sheet")
    yield from (dict(zip(header, row, strict=True)) for row in rows)
    book.close()


@dataclass(frozen=True, slots=True)
class Asked:
    """One row as the model saw it, what it said (None: nothing) and the readings of that."""

    item: Item
    said: str | None

    def letter(self, reading: Reading = "extracted") -> str | None:
        """The option letter meant, None when that reading finds none."""
        if not self.said:
            return None
        if reading == "strict":
            return _letters.exact(self.said, LETTERS)
        if reading == "first character":
            return self.said[0]
        return _letters.extract(self.said, dict(zip(LETTERS, self.item.options, strict=False)))


def judge(benchmark: str, tsv: str, task: Task) -> Scores:
    """Score `task.answers` against the TSV `tsv` under the root, or against an upload's own truth."""
    items = _truth(task, tsv)
    given = [answer for answer in task.answers if not answer.extra.get(BLANK)]
    rounds = max((int(answer.extra.get("round_id", 0)) for answer in given), default=0)
    if rounds:
        items = [turned for item in items for turned in _rotations(item)]
        given = [replace(a, question_id=f"{a.question_id}#{a.extra.get('round_id', 0)}") for a in given]
    questions = [Question(_key(item, rounds), item.text) for item in items]
    matched = match(questions, given, allow_missing=task.allow_missing, name=benchmark)
    rows = [
        Asked(item, answer.text if answer else None)
        for item, answer in zip(items, matched.answers, strict=True)
    ]
    return _scores_of(benchmark, rows, matched, task.split)


def _truth(task: Task, tsv: str) -> list[Item]:
    path = task.truth or task.root / tsv
    if path.is_file():
        return read_items(path)
    items = [answer.extra[ITEM] for answer in task.answers if ITEM in answer.extra]
    if not items or not all(item.truth for item in items):
        raise DataError(
            f"{path}: no such file, and the answers are no upload (xlsx) that brings the truth along"
        )
    return items


def _key(item: Item, rounds: int) -> str:
    return f"{item.index}#{item.turned}" if rounds else str(item.index)


def _rotations(item: Item) -> Iterator[Item]:
    """The rounds of --all-rounds: options move left by one each time, and the true letter with them."""
    options = item.options
    for turned in range(len(options)):
        place = (LETTERS.index(item.truth) - turned) % len(options)
        moved = (*options[turned:], *options[:turned])
        yield replace(item, options=moved, truth=LETTERS[place], turned=turned)


def _scores_of(benchmark: str, rows: Sequence[Asked], matched: Matched, split: str) -> Scores:
    groups: dict[int, list[Asked]] = defaultdict(list)
    for row in rows:
        groups[row.item.group].append(row)
    plain = {key: [row for row in group if row.item.is_base] for key, group in groups.items()}
    plain = {key: group for key, group in plain.items() if group}
    verdicts = [_verdict(group) for group in groups.values()]
    scores = [
        *_scores.accuracy_by([v for v in verdicts if v.type != UNKNOWN]),
        *_scores.accuracy_by(verdicts, "l2-category"),
        _scores.accuracy(verdicts, "circular", over={}),
        _alike("circular_strict", groups, "strict"),
        _alike("circular_first_character", groups, "first character"),
        _alike("plain", plain, "extracted"),
        _alike("plain_strict", plain, "strict"),
        _alike("plain_first_character", plain, "first character"),
    ]
    unreadable = sum(row.said is not None and row.letter() is None for row in rows)
    notes = [
        f"{len(rows)} rows make {len(groups)} base questions; {unreadable} rows name no option, "
        f"{sum(row.said not in LETTERS for row in rows if row.said is not None)} are more than a letter"
    ]
    if verdicts and not any(verdict.facets for verdict in verdicts):
        notes.append("no categories: they stand in the TSV, which is not here")
    return _scores.collect(
        benchmark, "circular", scores, verdicts, matched, source=SOURCE, split=split, notes=notes
    )


def _alike(name: str, groups: Mapping[int, Sequence[Asked]], reading: Reading) -> Score:
    """The share of groups in which every row is right."""
    units = {str(key): PERCENT * _all_right(group, reading) for key, group in groups.items()}
    return _scores.share_of_units(name, units)


def _all_right(group: Sequence[Asked], reading: Reading = "extracted") -> bool:
    return all(row.letter(reading) == row.item.truth for row in group)


def _verdict(group: Sequence[Asked]) -> Verdict:
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
        answer=" | ".join("-" if text is None else text for text in said),
        truth=" | ".join(row.item.truth for row in group),
        status=status,
        facets={"l2-category": item.l2_category} if item.l2_category else {},
        question=item.text,
    )


def write_upload(
    tsv: Path, answers: Sequence[Answer], path: Path, *, name: str, allow_missing: bool = True
) -> int:
    """Write the server's xlsx: the TSV's columns that it wants, and `prediction`; the number of empty cells.

    Made by the original's pandas calls with pandas' own rules for types and missing words, so that every cell
    is the original's. Source: LLaVA v1.2.2 scripts/convert_mmbench_for_submission.py.
    """
    import pandas

    if not tsv.is_file():
        raise DataError(f"{tsv}: no such file")
    table = pandas.read_table(tsv)
    questions = [Question(int(index), "") for index in table["index"]]
    first_round = [answer for answer in answers if int(answer.extra.get("round_id", 0)) == 0]
    matched = match(questions, first_round, allow_missing=allow_missing, name=name)
    upload = table.drop(columns=[column for column in DROPPED if column in table.columns])
    said = pandas.Series([answer.text if answer else None for answer in matched.answers], dtype=object)
    upload.insert(min(PREDICTION_COLUMN, len(upload.columns)), "prediction", said)
    with atomic_write(path, binary=True) as stream:
        upload.to_excel(stream, index=False, engine="openpyxl")
    return matched.missing


def make(name: str, title: str, folder: str, split: str, tsv: str, suffix: str) -> Benchmark:
    """MMBench in one language: its TSV and the sentence that asks for a letter."""

    def build(root: Path, split: str) -> list[Question]:
        return [
            Question(item.index, f"{item.text}\n{suffix}", category=item.category, image_base64=item.image)
            for item in read_items(root / tsv)
        ]

    def submit(task: Task, path: Path) -> None:
        write_upload(task.root / tsv, task.answers, path, name=name, allow_missing=task.allow_missing)

    return Benchmark(
        name=name,
        title=title,
        source=SOURCE,
        folder=folder,
        question_files={split: tsv},
        build=build,
        judge=lambda task: judge(name, tsv, task),
        submit=submit,
        submission_suffix=".xlsx",
        answers_from=read_upload,
    )


BENCHMARK = make(
    "mmbench", "MMBench dev (English)", "mmbench", "dev_20230712", "mmbench_dev_20230712.tsv", LETTER
)
