"""What files hold: SHA-256 digests, without reading again what cannot have changed. Needs no torch.

A file's state (device, inode, size, time of modification, time of last change) stands for its content. A
program can restore a file's time of modification, but the kernel sets the time of its last change.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from llava.errors import DataError
from llava.files import cache_folder, read_json, write_json

logger = logging.getLogger(__name__)

State = tuple[int, ...]
"""Device, inode, size in bytes, and the times of modification and of last change in ns."""

# Changes within one tick of a file system's clock (up to 2 s) have the same time.
_SETTLED_NS = 2_000_000_000
_READERS = 4
_REMEMBERED = 1000
_LARGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file held when it was read.

    Attributes:
        sha256: The digest of its bytes.
        state: The file's state at that time; None if it had changed moments before.
    """

    sha256: str
    state: State | None = None

    def is_still_in(self, path: Path) -> bool:
        """Return whether `path` holds the same bytes; they are read only if its state differs."""
        return (self.state is not None and self.state == file_state(path)) or self.sha256 == hash_file(path)


def look_at(path: Path) -> FileContent:
    """Read a file and return what it holds."""
    state = file_state(path)  # before reading, so that a later change gives another state
    return FileContent(hash_file(path), state)


def file_state(path: Path) -> State | None:
    """Return what differs after every change of a file; None if it changed in the last two seconds."""
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files_once(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file; a file whose state is known from before is not read.

    Several processes that ask at the same time read each file once: the others wait. If the cache folder
    cannot be written, every call reads the files.
    """
    with _memory() as known:
        keys = [",".join(map(str, state)) if (state := file_state(path)) else "" for path in paths]
        unread = [path for path, key in zip(paths, keys, strict=True) if key not in known]
        if (size := sum(path.stat().st_size for path in unread)) >= _LARGE_BYTES:
            logger.info(f"reading {size / 1e9:.1f} GB of weights to recognize them later")
        with ThreadPoolExecutor(_READERS) as pool:
            digests = dict(zip(unread, pool.map(hash_file, unread), strict=True))
        found = [digests.get(path) or known[key] for path, key in zip(paths, keys, strict=True)]
        known |= {key: digest for key, digest in zip(keys, found, strict=True) if key}
    return found


@contextmanager
def _memory() -> Iterator[dict[str, str]]:
    """Yield the digests by state that earlier runs left, and keep what the block adds."""
    try:
        file = cache_folder() / "digests.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    except (OSError, RuntimeError) as error:  # no home, or not writable
        logger.debug("digests are not remembered: %s", error)
        yield {}
        return
    try:
        try:
            known = dict(read_json(file))
        except (DataError, TypeError, ValueError):
            known = {}  # none yet, or damaged
        before = dict(known)
        yield known
        if known != before:
            with suppress(OSError):  # a full disk: they are found again
                write_json(file, dict(list(known.items())[-_REMEMBERED:]), indent=0)
    finally:
        lock.release()
