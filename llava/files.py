"""Reading and writing JSON: errors name file and line, large arrays are streamed, writes are atomic.

Knows nothing of what the rows mean.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llava.errors import DataError


def read_json(path: Path) -> Any:
    """The one JSON value in `path`.

    Raises:
        DataError: The file is missing or is not JSON; the message gives line and column.
    """
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON (column {error.colno}: {error.msg})"
        ) from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for every line that is not blank.

    Raises:
        DataError: The file is missing, or a line is not a JSON object (cut short by a crash, say).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: found {type(row).__name__}, wanted a JSON object")
            yield number, row


def stream_json_array(path: Path) -> Iterator[Any]:
    """The elements of the one JSON array in `path`, one at a time: a file of many GB needs little memory.

    Raises:
        DataError: The file is missing, is not JSON, or its top level is not an array.
    """
    import ijson

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as stream:
        start = stream.read(4096).lstrip()[:1]
        if start != b"[":
            raise DataError(f"{path}:1: found {start.decode(errors='replace')!r}, wanted a JSON array ('[')")
        stream.seek(0)
        count = 0
        try:
            for value in ijson.items(stream, "item", use_float=True):
                yield value
                count += 1
        except ijson.JSONError as error:
            raise DataError(f"{path}: not valid JSON after {count} elements: {error}") from error


@contextmanager
def atomic_write(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A stream whose content becomes `path` in one step on leaving the block; an exception changes nothing.

    Makes the parent folders. The bytes are on disk before the rename: a crash leaves the old file or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb" if binary else "w", encoding=None if binary else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; give ours the mode any other new file would have.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, indent: int | None = 2, ascii_only: bool = False) -> None:
    """Write one JSON value, atomically, with a newline at the end."""
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=indent, ensure_ascii=ascii_only)
        stream.write("\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, ascii_only: bool = True) -> None:
    """Write one object a line, atomically (ASCII-escaped like the original's answer files)."""
    with atomic_write(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=ascii_only) + "\n")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
