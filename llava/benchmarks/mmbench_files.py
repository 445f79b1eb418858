"""Read and write MMBench's files: the TSV with base64 images, and the xlsx for its server.

An option or hint of the TSV is missing only if its cell is empty. (The original also drops the literal
options "None", "nan" and "NA"; the public files have none.)
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava.benchmarks.answers import AllowMissing, match, read_answers
from llava.benchmarks.base import options_text
from llava.benchmarks.records import Record, read_sheet, read_tsv
from llava.errors import AnswersError, DataError
from llava.files import atomic_write
from llava.schema import Answer, Question

logger = logging.getLogger(__name__)

# Column -> cell; a TSV's cells are text, those of a sheet text, numbers or None.
TableRow = Mapping[str, str | float | None]

ROTATION = 1_000_000
INDEX = re.compile(r" *[0-9]{1,18} *")
LETTERS = "ABCD"
REQUIRED_COLUMNS = {"index", "question", "A", "B"}
DROPPED_COLUMNS = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION, PREDICTION_COLUMN = "prediction", 6
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# Keys of `Answer.extra` from `read_mmbench_upload`: the row, and whether its prediction was empty.
ITEM, BLANK = "item", "blank"


@dataclass(frozen=True, slots=True)
class MmbenchItem:
    """One row of the TSV: a base question or one of its rotations. `image` is base64.

    `rotation` is the round of --all-rounds in which the item is asked, 0 for an item as in the TSV.
    """

    index: int
    question: str
    hint: str
    options: tuple[str, ...]
    truth: str
    category: str = ""
    l2_category: str = ""
    image: str = field(default="", repr=False)
    rotation: int = 0

    @property
    def is_base(self) -> bool:
        """Whether this is the original question and not a rotation."""
        return self.index < ROTATION and self.rotation == 0

    @property
    def group(self) -> int:
        """The index of the base question."""
        return self.index % ROTATION

    @property
    def text(self) -> str:
        """Hint, question and options, without the instruction to answer by letter."""
        hint = f"{self.hint}\n" if self.hint else ""
        return options_text(hint + self.question, self.options)

    def rotate(self, rotation: int) -> MmbenchItem:
        """Return the item of that round of --all-rounds: options moved left by `rotation`, same `truth`."""
        options = (*self.options[rotation:], *self.options[:rotation])
        return replace(self, options=options, rotation=rotation)


def read_mmbench_items(path: Path, *, images: bool = True) -> list[MmbenchItem]:
    """Read the rows of an MMBench TSV or of an upload's xlsx; without `images`, with a digest of each image.

    Raises:
        DataError: The file is missing or damaged, lacks a column, or an index is no number or comes twice.
    """
    if path.suffix == ".xlsx":
        rows = ((f"{path}: row {number}", row) for number, row in _read_upload(path))
    else:
        rows = ((f"{path}:{line}", row) for line, row in read_tsv(path))
    items: dict[int, MmbenchItem] = {}
    for where, row in rows:
        if missing := REQUIRED_COLUMNS - row.keys():
            raise DataError(
                f"{path}:1: no column {', '.join(sorted(missing))} in this table", code="missing-column"
            )
        item = _item(row, where)
        if item.index in items:
            raise DataError(f"{where}: a second row with the index {item.index}", code="repeated-id")
        items[item.index] = item if images else replace(item, image=short_digest(item.image))
    if not items:
        raise DataError(f"{path}: holds no row", code="no-questions")
    return list(items.values())


def _item(row: TableRow, where: str) -> MmbenchItem:
    index = _index(row["index"], where)
    options = [_cell(row, letter) for letter in LETTERS]
    if PREDICTION in row:
        # In an upload pandas has emptied options such as "None". So an empty cell before the last option,
        # or the one that the true letter names, is an option of unknown text.
        truth = _cell(row, "answer")
        known = (number for number, option in enumerate(options, 1) if option or LETTERS[number - 1] == truth)
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


def short_digest(*texts: str) -> str:
    """Return 16 hexadecimal digits that tell these texts from others."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _index(cell: object, where: str) -> int:
    """Return the index in a cell; a sheet may hold it as a float or as text."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not INDEX.fullmatch(str(cell)):
        raise DataError(f"{where}: index is {cell!r}, wanted a whole number", code="bad-id")
    return int(str(cell))


def _cell(row: TableRow, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value)


def read_mmbench_upload(path: Path) -> list[Answer]:
    """Read the rows of an upload's xlsx (with question and truth in `extra`), or any other answers file."""
    if path.suffix != ".xlsx":
        return read_answers(path)
    answers = []
    for number, row in _read_upload(path):
        item = _item(row, f"{path}: row {number}")
        extra = {ITEM: item, BLANK: row[PREDICTION] is None}
        answers.append(Answer(item.index, item.text, _cell(row, PREDICTION), extra=extra))
    return answers


def round_of(answer: Answer) -> int:
    """Return the round of --all-rounds in which the question was asked, counted from 0."""
    number = answer.extra.get("round_id") or 0
    if not isinstance(number, int):
        raise AnswersError(
            f"question {answer.question_id}: round_id is {number!r}, wanted a number", code="wrong-type"
        )
    return number


def _read_upload(path: Path) -> Iterator[tuple[int, Record]]:
    for number, row in read_sheet(path):
        if missing := {"index", PREDICTION} - row.keys():
            raise DataError(
                f"{path}: no column {', '.join(sorted(missing))} in this sheet", code="missing-column"
            )
        yield number, row


def write_mmbench_upload(
    tsv: Path, answers: Sequence[Answer], path: Path, *, name: str, allow_missing: AllowMissing = True
) -> int:
    """Write the server's xlsx (the TSV's columns plus `prediction`); return the number of empty predictions.

    The pandas calls are those of the original, with pandas' rules for types and missing values, so that every
    cell is equal. Of several rounds only the first is written, because its letters are those of the TSV.
    Control characters, which a sheet cannot contain, are dropped with a warning.
    Source: LLaVA v1.2.2 scripts/convert_mmbench_for_submission.py.
    """
    import pandas

    questions = [Question(item.index, "") for item in read_mmbench_items(tsv, images=False)]
    table = pandas.read_table(tsv)
    first_round = [answer for answer in answers if round_of(answer) == 0]
    matched = match(questions, first_round, allow_missing=allow_missing, name=name)
    upload = table.drop(columns=[column for column in DROPPED_COLUMNS if column in table.columns])
    texts = [answer.text if answer else None for answer in matched.answers]
    cells = [text if text is None else CONTROL_CHARACTERS.sub("", text) for text in texts]
    if changed := sum(text != cell for text, cell in zip(texts, cells, strict=True)):
        logger.warning(
            "%s: %d predictions lose control characters, which an xlsx cannot contain", path, changed
        )
    predictions = pandas.Series(cells, dtype=object)
    upload.insert(min(PREDICTION_COLUMN, len(upload.columns)), PREDICTION, predictions)
    with atomic_write(path, binary=True) as stream:
        upload.to_excel(stream, index=False, engine="openpyxl")
    return matched.missing
