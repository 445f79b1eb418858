"""MMBench's files: the TSV with its base64 images, and the server's xlsx, as input and as output.

The TSV is read as text with no word taken for "missing": an option or hint is absent only when its cell is
empty. (The original also drops the literal options "None", "nan" and "NA"; the public files have none.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import options_text
from llava.errors import AnswersError, DataError
from llava.files import atomic_write
from llava.schema import Answer, Question

logger = logging.getLogger(__name__)

ROTATION = 1_000_000
LETTERS = "ABCD"
NEEDED = {"index", "question", "A", "B"}
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION, PREDICTION_COLUMN = "prediction", 6
NOT_IN_SHEETS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# What `read_mmbench_upload` leaves in an answer: the row it stood in, and whether its cell was empty.
ITEM, BLANK = "item", "blank"


@dataclass(frozen=True, slots=True)
class MmbenchItem:
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

    def rotate(self, turned: int) -> MmbenchItem:
        """The item in round `turned` of --all-rounds: its options moved left by as many; `truth` stays."""
        return replace(self, options=(*self.options[turned:], *self.options[:turned]), turned=turned)


def read_mmbench_items(path: Path, *, images: bool = True) -> list[MmbenchItem]:
    """The rows of an MMBench TSV (or of an upload's xlsx) in its order; `images` False leaves those out.

    Raises:
        DataError: The file is missing, lacks a column, or an index is not a number.
    """
    if path.suffix == ".xlsx":
        return [_item(row, f"{path}: row {number}") for number, row in enumerate(_sheet(path), start=2)]
    import pandas

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        table = pandas.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            usecols=None if images else (lambda column: column != "image"),
        )
    except ValueError as error:  # pandas' own errors and text that is not UTF-8
        raise DataError(f"{path}: cannot be read as a TSV ({error})") from error
    missing = NEEDED - set(table.columns)
    if missing:
        raise DataError(f"{path}:1: no column {', '.join(sorted(missing))} in this TSV")
    rows = table.to_dict("records")
    return [_item(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _item(row: dict[Any, Any], where: str) -> MmbenchItem:
    try:
        index = int(row["index"])
    except ValueError as error:
        raise DataError(f"{where}: index is {row['index']!r}, wanted a number") from error
    options = [_cell(row, letter) for letter in LETTERS]
    if PREDICTION in row:
        # An upload: pandas has blanked options such as "None", so a gap is an option, if an unknown one,
        # and so is what the true letter names.
        truth = _cell(row, "answer")
        known = (place for place, option in enumerate(options, 1) if option or LETTERS[place - 1] == truth)
        count = max(known, default=0)
    else:
        count = options.index("") if "" in options else len(options)
    return MmbenchItem(
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


def read_mmbench_upload(path: Path) -> list[Answer]:
    """The rows of an upload's xlsx (question and truth in `extra`), or those of any other answers file."""
    if path.suffix != ".xlsx":
        return read_answers(path)
    answers = []
    for number, row in enumerate(_sheet(path), start=2):
        item = _item(row, f"{path}: row {number}")
        said = row[PREDICTION]
        answers.append(
            Answer(item.index, item.text, _cell(row, PREDICTION), extra={ITEM: item, BLANK: said is None})
        )
    return answers


def round_of(answer: Answer) -> int:
    """Which of several askings of its question (--all-rounds) this answers, from 0."""
    number = answer.extra.get("round_id") or 0
    if not isinstance(number, int):
        raise AnswersError(f"question {answer.question_id}: round_id is {number!r}, wanted a number")
    return number


def _sheet(path: Path) -> Iterator[dict[str, Any]]:
    import openpyxl

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    book = openpyxl.load_workbook(path, read_only=True)
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = [str(cell) for cell in next(rows)]
    missing = {"index", PREDICTION} - set(header)
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))} in this sheet")
    yield from (dict(zip(header, row, strict=True)) for row in rows)
    book.close()


def write_mmbench_upload(
    tsv: Path, answers: Sequence[Answer], path: Path, *, name: str, allow_missing: bool = True
) -> int:
    """Write the server's xlsx: the TSV's columns that it wants, and `prediction`; the number of empty cells.

    Made by the original's pandas calls with pandas' own rules for types and missing words, so that every cell
    is the original's. Of several rounds the first is sent: its letters are the TSV's.
    A sheet cannot hold control characters; what a model says of those is left out, with a warning.
    Source: LLaVA v1.2.2 scripts/convert_mmbench_for_submission.py.
    """
    import pandas

    if not tsv.is_file():
        raise DataError(f"{tsv}: no such file")
    table = pandas.read_table(tsv)
    questions = [Question(int(index), "") for index in table["index"]]
    first_round = [answer for answer in answers if round_of(answer) == 0]
    matched = match(questions, first_round, allow_missing=allow_missing, name=name)
    upload = table.drop(columns=[column for column in DROPPED if column in table.columns])
    texts = [answer.text if answer else None for answer in matched.answers]
    cells = [text if text is None else NOT_IN_SHEETS.sub("", text) for text in texts]
    if changed := sum(text != cell for text, cell in zip(texts, cells, strict=True)):
        logger.warning("%s: %d predictions lose control characters, which no sheet can hold", path, changed)
    said = pandas.Series(cells, dtype=object)
    upload.insert(min(PREDICTION_COLUMN, len(upload.columns)), PREDICTION, said)
    with atomic_write(path, binary=True) as stream:
        upload.to_excel(stream, index=False, engine="openpyxl")
    return matched.missing
