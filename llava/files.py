"""Reading and writing JSON: errors name file and line, large arrays are streamed, writes are atomic.

Knows nothing of what the rows mean.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llava.errors import DataError

# What the system says when a disk, a user's share of it or a file may not grow.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


ObjectHook = Callable[[dict[str, Any]], Any]


def read_json(path: Path, *, object_hook: ObjectHook | None = None) -> Any:
    """The one JSON value in `path`.

    Raises:
        DataError: The file is missing or is not JSON; the message gives line and column.
    """
    try:
        return json.loads(_read_text(path), object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON (column {error.colno}: {error.msg})"
        ) from error


Passed = Callable[[int], object]


def read_jsonl(path: Path, passed: Passed | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for every line that is not blank; `passed` is told each line's bytes.

    Raises:
        DataError: The file is missing, or a line is not a JSON object (cut short by a crash, say).
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if passed:
                passed(len(line))
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: found {type(row).__name__}, wanted a JSON object")
            yield number, row


def stream_json_array(path: Path, passed: Passed | None = None) -> Iterator[Any]:
    """The elements of the one JSON array in `path`, one at a time: a file of many GB needs little memory.

    Values are exactly those of `json.load` (a streaming C parser turned half surrogates into "?"). `passed`
    is told how many bytes were read, each time some are.

    Raises:
        DataError: The file is missing, is not JSON, or its top level is not an array.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as stream:
        text = _ArrayText(path, stream, passed)
        if (start := text.next_character()) != "[":
            raise DataError(f"{path}:1: found {start!r}, wanted a JSON array ('[')")
        text.position += 1
        if text.next_character() == "]":
            text.position += 1
            text.end()
            return
        while True:
            yield text.next_value(decoder)
            separator = text.next_character()
            if separator not in {",", "]"}:
                raise text.error(f"found {separator!r}, wanted ',' or ']'" if separator else "cut short")
            text.position += 1
            if separator == "]":
                text.end()
                return


class _ArrayText:
    """A window on the text of an array, moved along as its elements are read."""

    _CHARACTERS = 1 << 20
    _LONGEST_TOKEN = 32  # What the window's end cuts (a word, an escape) fails at most this far before it.

    def __init__(self, path: Path, stream: IO[str], passed: Passed | None = None) -> None:
        self._path = path
        self._stream = stream
        self._passed = passed
        self._window = ""
        self._lines_before = 1
        self._count = 0
        self.position = 0

    def next_character(self) -> str:
        """The next character that is not white space, not yet passed; "" at the end of the file."""
        while True:
            self.position = _passed_space(self._window, self.position)
            if self.position < len(self._window) or not self._read_more():
                return self._window[self.position : self.position + 1]

    def next_value(self, decoder: json.JSONDecoder) -> Any:
        """The value that starts here, passed."""
        if not self.next_character():
            raise self.error("cut short")
        while True:
            try:
                value, end = decoder.raw_decode(self._window, self.position)
            except json.JSONDecodeError as error:
                may_be_cut = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self._window) - self._LONGEST_TOKEN
                )
                if may_be_cut and self._read_more():
                    continue
                self.position = error.pos
                raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from error
            # "1.5" at the window's end may go on as "1.5e3".
            if end + self._LONGEST_TOKEN < len(self._window) or not self._read_more():
                self.position = end
                self._count += 1
                return value

    def end(self) -> None:
        """Nothing may follow the array."""
        if rest := self.next_character():
            raise self.error(f"found {rest!r} after the array")

    def error(self, message: str) -> DataError:
        """What is wrong at the present position."""
        line = self._lines_before + self._window.count("\n", 0, self.position)
        return DataError(f"{self._path}:{line}: not valid JSON after {self._count} elements: {message}")

    def _read_more(self) -> bool:
        """Drop what is passed and read on; False, and nothing changed, at the end of the file."""
        try:
            # As much again as is there: an element of many MB is not decoded anew for every MB of it.
            more = self._stream.read(max(self._CHARACTERS, len(self._window)))
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text ({error.reason})") from error
        if more:
            self._lines_before += self._window.count("\n", 0, self.position)
            self._window = self._window[self.position :] + more
            self.position = 0
            if self._passed:
                self._passed(len(more.encode()))
        return bool(more)


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            # An open stream does not know its name.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def flush_tree(folder: Path, *, deep: bool = True) -> None:
    """Bring a folder to the disk, its files before itself; not `deep`, only which names it holds."""
    for path in sorted(folder.rglob("*"), reverse=True) if deep else []:
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks have no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


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


def _passed_space(text: str, position: int) -> int:
    """The first position from `position` on that is no JSON white space."""
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position


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
