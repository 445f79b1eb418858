"""Official data files as records that name their file, and which errors are the data's fault.

Reading is kept apart from judging: a key that a record lacks is an error of the user's data, a `KeyError` of
a dictionary that the code built is a bug and keeps its traceback.
"""

from __future__ import annotations

import csv
import functools
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

from llava.errors import DataError, one_line, shown
from llava.files import read_json, read_jsonl
from llava.schema import JsonObject, RecordId

SHOWN_KEYS = 8
JSON_TYPES = (dict, list, str, int, float, bool, type(None))
JSON_TYPE_NAMES = {kind.__name__ for kind in JSON_TYPES} | {"Record", "string"}
# A cell may hold an image, 131,072 characters are csv's own limit.
LONGEST_CELL = 2**31 - 1
# What openpyxl raises for a file that is no xlsx, or a damaged one.
BROKEN_SHEET = (BadZipFile, zlib.error, SyntaxError, EOFError, KeyError, IndexError, TypeError, ValueError)
_CALL_ERROR = re.compile(r"\w\(\) (takes|got|missing)|is not callable")


class MissingKeyError(DataError, KeyError):
    """A record of a data file lacks a key."""

    def __str__(self) -> str:
        return str(self.args[0])


class Record(JsonObject):
    """A JSON object of a data file; a missing key is a `DataError` that names the file."""

    __slots__ = ("where",)

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> NoReturn:
        """Raise a MissingKeyError that lists the keys that are there."""
        shown = ", ".join(map(str, list(self)[:SHOWN_KEYS])) or "none"
        more = ", ..." if len(self) > SHOWN_KEYS else ""
        raise MissingKeyError(
            f"{self.where}: a record lacks the key {key!r}; it has {shown}{more}", code="missing-key"
        )


def read_json_records(path: Path) -> Any:
    """Return the JSON value in `path`, its objects as records.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    return read_json(path, object_hook=functools.partial(Record, str(path)), strict=True)


def read_record_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) for each line of a jsonl file that is not blank.

    Raises:
        DataError: The file is missing, or a line is not a JSON object.
    """
    for line, row in read_jsonl(path, strict=True):
        yield line, Record(f"{path}:{line}", row)


def read_tsv(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) for each row of a TSV with a header; a quoted cell may span lines.

    Raises:
        DataError: The file is missing or is not UTF-8, its quotes do not match up (which would swallow rows),
            or a row has more or fewer cells than the header.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    csv.field_size_limit(LONGEST_CELL)
    header: list[str] = []
    line = 1
    with path.open("rb") as stream:
        reader = csv.reader(_decode_lines(path, stream), delimiter="\t", strict=True)
        try:
            for row in reader:
                if row and not header:
                    header = _check_header(row, f"{path}:{line}")
                elif row:
                    _check_row(row, header, f"{path}:{line}")
                    yield line, Record(f"{path}:{line}", dict(zip(header, row, strict=True)))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: a cell of this row opens with a quote that is not closed as it must be "
                f"({error}, in line {reader.line_num}); remove the quote, or quote the whole cell and double "
                "the quotes inside",
                code="unmatched-quote",
            ) from error


def _decode_lines(path: Path, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if b"\0" in line:
            raise DataError(f"{path}:{number}: holds a NUL byte; this is no text file", code="not-tsv")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 text ({error.reason})", code="not-utf8") from error


def _check_header(header: list[str], where: str) -> list[str]:
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{where}: the column {min(twice)!r} comes twice", code="repeated-key")
    return header


def _check_row(row: Sequence[str], header: Sequence[str], where: str) -> None:
    """Check the number of cells, and that no cell holds the end of one row and the start of another."""
    if len(row) != len(header):
        raise DataError(
            f"{where}: found {len(row)} cells, wanted {len(header)} as in the header; has a cell a stray "
            "quote or tab?",
            code="row-length",
        )
    width = len(header) - 1
    for name, cell in zip(header, row, strict=True):
        tabs = cell.count("\t")
        if width and tabs and tabs % width == 0 and cell.count("\n") * width >= tabs:
            raise DataError(
                f"{where}: the cell {name!r} holds {tabs // width} further rows; remove its opening quote",
                code="unmatched-quote",
            )


def read_sheet(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) for each row of an xlsx's first sheet that is not empty.

    Raises:
        DataError: The file is missing, is not an xlsx, or a row has more cells than the header.
    """
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    try:
        book = openpyxl.load_workbook(path, read_only=True)
        rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (*BROKEN_SHEET, InvalidFileException) as error:
        raise DataError(f"{path}: cannot be read as an xlsx ({one_line(error)})", code="not-xlsx") from error
    header = _check_header(
        [str(cell) for cell in rows[0] if cell is not None] if rows else [], f"{path}: row 1"
    )
    for number, row in enumerate(rows[1:], start=2):
        cells = row + [None] * (len(header) - len(row))
        if any(cell is not None for cell in cells[len(header) :]):
            raise DataError(
                f"{path}: row {number}: found more cells than the {len(header)} of the header",
                code="row-length",
            )
        if any(cell is not None for cell in cells):
            yield number, Record(f"{path}: row {number}", dict(zip(header, cells, strict=False)))


def index_records(path: Path, rows: Iterable[Mapping[str, object]], key: str) -> Record:
    """Return the rows of the file `path` by their value of `key`, as text.

    Raises:
        DataError: A value is no id, or two rows have the same.
    """
    found = Record(str(path), {})
    for index, row in enumerate(rows):
        where = f"{path}: row {index}: {key}"
        identifier = str(require_id(row[key], where))
        if identifier in found:
            raise DataError(f"{where}: {identifier} comes a second time", code="repeated-id")
        found[identifier] = row
    return found


def require_id(value: object, where: str) -> RecordId:
    """Return `value` if an answer can be matched by it: text that is not blank, or a whole number.

    Raises:
        DataError: It is something else; the message starts with `where`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}: the id is {shown(value)}, wanted text or a whole number", code="bad-id")
    return value


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def is_data_fault(error: Exception) -> bool:
    """Return whether `error` comes from the content of a record, not from the code that handles it.

    A JSON value of another type than the code expects gives a TypeError about JSON types, or an
    AttributeError for a method that another JSON type has (`.items()` of a list). An attribute that no JSON
    type has, an attribute of our own class, a wrong call and a KeyError are bugs.
    """
    if isinstance(error, AttributeError):
        has_method = any(hasattr(kind, error.name or "") for kind in JSON_TYPES)
        return isinstance(error.obj, JSON_TYPES) and has_method
    if isinstance(error, TypeError):
        quoted = set(re.findall(r"'(\w+)'", str(error)))
        return quoted <= JSON_TYPE_NAMES and not _CALL_ERROR.search(str(error))
    return isinstance(error, IndexError | ValueError | ArithmeticError)
