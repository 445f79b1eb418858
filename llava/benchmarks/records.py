"""Official data files as records that name their file, and which errors are the data's fault.

Reading is kept apart from judging: a key that a record lacks is an error of the user's data, a `KeyError` of
a dictionary that the code built is a bug and keeps its traceback.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.files import read_json, read_jsonl
from llava.schema import JsonObject

SHOWN_KEYS = 8
JSON_TYPES = (dict, list, str, int, float, bool, type(None))
JSON_TYPE_NAMES = {kind.__name__ for kind in JSON_TYPES} | {"Record", "string"}
_CALL_ERROR = re.compile(r"\w\(\) (takes|got|missing)|is not callable")


class MissingKeyError(DataError, KeyError):
    """A record of a data file lacks a key."""

    def __str__(self) -> str:
        return str(self.args[0])


class Record(JsonObject):
    """A JSON object of a data file; a missing key is a `DataError` that names the file."""

    __slots__ = ("where",)

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
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
    return read_json(path, object_hook=functools.partial(Record, str(path)))


def read_record_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) for each line of a jsonl file that is not blank.

    Raises:
        DataError: The file is missing, or a line is not a JSON object.
    """
    for line, row in read_jsonl(path):
        yield line, Record(f"{path}:{line}", row)


def index_records(path: Path, rows: Iterable[Mapping[str, Any]], key: str) -> Record:
    """Return the rows of the file `path` by their value of `key`, as text."""
    return Record(str(path), {str(row[key]): row for row in rows})


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
    return isinstance(error, IndexError | ValueError | ZeroDivisionError)
