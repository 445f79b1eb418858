"""Read and write JSON: errors name file and line, large arrays are streamed, writes are atomic."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llava.errors import DataError, SettingsError
from llava.json_text import JsonFaultError, ObjectHook, build_object, locate_fault, parse_json
from llava.schema import JsonObject
from llava.temporary import temporary_file, temporary_folder

CACHE_VARIABLE = "LLAVA_CACHE"


def cache_folder() -> Path:
    """Return the folder for what later runs may use again, which may not exist yet."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llava")


def read_json(path: Path, *, object_hook: ObjectHook | None = None, strict: bool = False) -> Any:
    """Return the JSON value in `path`; `strict` is that of `parse_json`.

    Raises:
        DataError: The file is missing, or its text is refused by `parse_json`; the message gives the line.
    """
    text = read_text(path)
    try:
        return parse_json(text, object_hook=object_hook, strict=strict)
    except JsonFaultError as fault:
        line = text.count("\n", 0, fault.offset) + 1
        raise DataError(f"{path}:{line}: {fault}", code=fault.code) from fault


OnRead = Callable[[int], object]
"""Called with the number of bytes just read, for a progress bar."""


def read_jsonl(
    path: Path, on_read: OnRead | None = None, *, strict: bool = False, growing: bool = False
) -> Iterator[tuple[int, JsonObject]]:
    """Yield (line number from 1, object) for every line that is not blank.

    Args:
        path: A file with one JSON object per line.
        on_read: Called with the size of each line.
        strict: As for `parse_json`.
        growing: Leave out a last line without its end: it is being written, or a kill cut it short.

    Raises:
        DataError: The file is missing, or a line is not a JSON object (a crash may have cut it short) or is
            refused by `parse_json`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if on_read:
                on_read(len(line))
            if not line.strip() or (growing and not line.endswith(b"\n")):
                continue
            try:
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"), strict=strict)
            except JsonFaultError as fault:
                raise DataError(f"{path}:{number}: {fault}", code=fault.code) from fault
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 text ({error.reason})", code="not-utf8"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}:{number}: found {type(row).__name__}, wanted a JSON object", code="not-an-object"
                )
            yield number, row


def stream_json_array(path: Path, on_read: OnRead | None = None) -> Iterator[object]:
    """Yield the elements of the JSON array in `path` one at a time: a file of many GB needs little memory.

    Values are those of `json.load` (streaming C parsers turn lone surrogates into "?").

    Args:
        path: A file with one JSON array.
        on_read: Called with the size of each block read.

    Raises:
        DataError: The file is missing, is not JSON, its top level is not an array, or an object has a key
            twice.
    """
    with _open_json(path, on_read) as text:
        if (start := text.next_character()) != "[":
            raise DataError(f"{path}:1: found {start!r}, wanted a JSON array ('[')", code="not-an-array")
        yield from text.elements()
        text.require_end()


def stream_json_lists(path: Path, names: Collection[str]) -> Iterator[tuple[str, object]]:
    """Yield (name, element) for the arrays that the JSON object in `path` has under `names`, in its order.

    As `stream_json_array`, for files such as COCO's: `{"images": [...], "annotations": [...]}`.

    Raises:
        DataError: The file is missing, is not JSON or not an object, an object has a key twice, or what is
            under a name is no array.
    """
    seen = set()
    with _open_json(path) as text:
        if (start := text.next_character()) != "{":
            raise DataError(f"{path}:1: found {start!r}, wanted a JSON object ('{{')", code="not-an-object")
        for key in text.member_names():
            if key in seen:
                raise text.error(f"the key {key!r} comes twice in one object; remove one", "repeated-key")
            seen.add(key)
            if key not in names:
                text.next_value()
            elif (start := text.next_character()) == "[":
                yield from ((key, element) for element in text.elements())
            else:
                raise text.error(f"{key} starts with {start!r}, wanted an array ('[')", "not-an-array")
        text.require_end()


@contextmanager
def _open_json(path: Path, on_read: OnRead | None = None) -> Iterator[_JsonReader]:
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    with path.open(encoding="utf-8-sig") as stream:
        yield _JsonReader(path, stream, on_read)


class _JsonReader:
    """A window on the text of a JSON file that moves forward as its values are read."""

    _CHARACTERS = 1 << 20
    # A token cut by the end of the window (`tru`, `\\ud8`) makes the decoder fail at most this far before it.
    _LONGEST_TOKEN = 32

    def __init__(self, path: Path, stream: IO[str], on_read: OnRead | None = None) -> None:
        self._path = path
        self._stream = stream
        self._on_read = on_read
        self._window = ""
        self._lines_before = 1
        self._count = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=build_object)
        self.position = 0

    def next_character(self) -> str:
        """Skip white space and return the next character without consuming it; "" at the end of the file."""
        while True:
            self.position = _skip_space(self._window, self.position)
            if self.position < len(self._window) or not self._read_more():
                return self._window[self.position : self.position + 1]

    def elements(self) -> Iterator[object]:
        """Yield the elements of the array that starts here, and move past it."""
        for _ in self._items("]"):
            yield self.next_value()

    def member_names(self) -> Iterator[str]:
        """Yield the keys of the object that starts here; the caller moves past each value."""
        for _ in self._items("}"):
            if not isinstance(key := self.next_value(), str) or self.next_character() != ":":
                raise self.error(f"found {key!r}, wanted a key and ':'")
            self.position += 1
            yield key

    def _items(self, end: str) -> Iterator[None]:
        """Yield before each item between the bracket here and `end`; the caller moves past the item."""
        self.position += 1
        if self.next_character() == end:
            self.position += 1
            return
        while True:
            yield
            separator = self.next_character()
            if separator not in {",", end}:
                raise self.error(f"found {separator!r}, wanted ',' or {end!r}" if separator else "cut short")
            self.position += 1
            if separator == end:
                return

    def next_value(self) -> object:
        """Decode the value that starts here and move past it."""
        if not self.next_character():
            raise self.error("cut short")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self.position)
            except json.JSONDecodeError as error:
                may_be_cut = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self._window) - self._LONGEST_TOKEN
                )
                if may_be_cut and self._read_more():
                    continue
                self.position = error.pos
                raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:
                fault = locate_fault(self._window[self.position :])
                if fault is None:
                    raise self.error(str(error)) from error
                self.position += fault.offset
                raise self.error(str(fault), fault.code) from error
            # "1.5" at the end of the window may continue as "1.5e3".
            if end + self._LONGEST_TOKEN < len(self._window) or not self._read_more():
                self.position = end
                self._count += 1
                return value

    def require_end(self) -> None:
        """Raise if anything follows the value."""
        if rest := self.next_character():
            raise self.error(f"found {rest!r} after the end")

    def error(self, message: str, code: str = "not-json") -> DataError:
        """Return an error that names the current line."""
        line = self._lines_before + self._window.count("\n", 0, self.position)
        return DataError(
            f"{self._path}:{line}: not valid JSON after {self._count} elements: {message}", code=code
        )

    def _read_more(self) -> bool:
        """Drop consumed text and read more; return False, changing nothing, at the end of the file."""
        try:
            # Doubling the window keeps an element of many MB from being decoded again for every MB of it.
            more = self._stream.read(max(self._CHARACTERS, len(self._window)))
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text ({error.reason})", "not-utf8") from error
        if more:
            self._lines_before += self._window.count("\n", 0, self.position)
            self._window = self._window[self.position :] + more
            self.position = 0
            if self._on_read:
                self._on_read(len(more.encode()))
        return bool(more)


@contextmanager
def atomic_write(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Yield a stream whose content replaces `path` when the block ends; an exception changes nothing.

    Makes the parent folders. The bytes are on disk before the rename, so a crash leaves the old file or the
    new one.
    """
    if path.is_dir():  # known before the work, not after it
        raise IsADirectoryError(errno.EISDIR, "is a folder, wanted a file to write", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as temporary:
        with temporary.open("wb" if binary else "w", encoding=None if binary else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # A temporary file is private; use the mode any other new file would have.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a staging folder whose entries appear in `folder` at the end; an exception changes nothing.

    A new folder appears in one rename. In one that exists, entries are renamed one by one: those of the same
    name are replaced, others stay. The bytes are on disk before the first rename.
    """
    is_new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, within=folder.parent if is_new else folder) as staging:
        yield staging
        # mkdtemp and safetensors make private files; give ours the mode any other new file would have.
        mode = 0o777 & ~_umask()
        staging.chmod(mode)
        for path in staging.rglob("*"):
            path.chmod(mode if path.is_dir() else mode & 0o666)
        if is_new:
            publish_folder(staging, folder)
        else:
            flush_tree(staging)
            for path in sorted(staging.iterdir()):
                path.replace(folder / path.name)
            flush_tree(folder, deep=False)


def require_distinct(outputs: Sequence[Path | None], inputs: Sequence[Path | None]) -> None:
    """Check that no output of a command is one of its inputs or another output; None stands for no file.

    Raises:
        SettingsError: One is; the message names it.
    """
    taken = {_identity(path): "an input" for path in inputs if path}
    for path in outputs:
        if path is None:
            continue
        if (what := taken.get(_identity(path))) is not None:
            raise SettingsError(
                f"{path} is {what} and would be overwritten; name another output", code="output-is-input"
            )
        taken[_identity(path)] = "another output"


def _identity(path: Path) -> object:
    """Return what two names of one file have in common, also where upper and lower case are the same."""
    path = path.expanduser()
    if not path.exists():
        return path.resolve()
    found = path.stat()
    return found.st_dev, found.st_ino


def publish_folder(staging: Path, folder: Path) -> None:
    """Flush `staging` and rename it to `folder`; an earlier `folder` is moved beside `staging`."""
    flush_tree(staging)
    if folder.exists():
        folder.replace(staging.with_name("old"))
    staging.replace(folder)
    flush_tree(folder.parent, deep=False)


def flush_tree(folder: Path, *, deep: bool = True) -> None:
    """Flush a folder to disk, its files first; with `deep=False` only its directory entry."""
    for path in sorted(folder.rglob("*"), reverse=True) if deep else []:
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot fsync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object, *, indent: int | None = 2, ascii_only: bool = False) -> None:
    """Write one JSON value atomically, with a newline at the end."""
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=indent, ensure_ascii=ascii_only)
        stream.write("\n")


def write_jsonl(path: Path, rows: Iterable[JsonObject], *, ascii_only: bool = True) -> None:
    """Write one object per line atomically, ASCII-escaped like the original's answer files."""
    with atomic_write(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=ascii_only) + "\n")


def append_jsonl(path: Path, row: JsonObject) -> None:
    """Add a line to a file that one process at a time writes; it is on disk when this returns.

    A last line that a kill cut short was never confirmed, and is removed.
    """
    with path.open("ab+") as stream:
        stream.seek(0)
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)
        stream.write(json.dumps(row).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _skip_space(text: str, position: int) -> int:
    """Return the first position from `position` on that is not JSON white space."""
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position


def read_text(path: Path) -> str:
    """Return the text in `path`, without a byte order mark.

    Raises:
        DataError: The file is missing or is not UTF-8; the message gives the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text (byte {error.start})", code="not-utf8") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
