"""Files and folders that are being written. Those of killed processes are removed by the next one.

A process holds a lock on each for as long as it writes, and the system releases it however the process ends:
what is named like one and can be locked is left over.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGING = ".saving-"
"""How the names of folders that are still being written begin."""

_SUFFIX = ".saving"
_OURS = re.compile(r"\.saving-[a-z0-9_]{8}|\..+\.[a-z0-9_]{8}\.saving")
_NO_LOCK = -1

# The disk is full, the user's quota is used up, or the file is at its size limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path`, and remove it at the end if it is still there.

    Errors of the block about it, or about no file, name `path`, which is what the user knows.
    """
    _remove_leftovers(path.parent)
    with name_in_errors(path, f"{os.sep}.{path.name[:40]}."):
        lock = None
        while lock is None:
            descriptor, name = tempfile.mkstemp(_SUFFIX, f".{path.name[:40]}.", path.parent)
            os.close(descriptor)
            lock = _hold(Path(name))
        with _removing(Path(name), lock):
            yield Path(name)


@contextmanager
def temporary_folder(path: Path, *, within: Path) -> Iterator[Path]:
    """Yield an empty folder in `within`, and remove it at the end if it is still there.

    Errors of the block are as in `temporary_file`.
    """
    _remove_leftovers(within)
    with name_in_errors(path, f"{os.sep}{STAGING}"):
        lock = None
        while lock is None:
            name = tempfile.mkdtemp("", STAGING, within)
            lock = _hold(Path(name))
        with _removing(Path(name), lock):
            yield Path(name)


def _hold(path: Path) -> int | None:
    """Lock what is new; None if another process took it for a leftover before it was locked.

    Returns:
        The descriptor that holds the lock; `_NO_LOCK` where there are no locks, so that leftovers stay.
    """
    try:
        lock = _lock(path, wait=True)
    except OSError:
        lock = _NO_LOCK
    if path.exists():
        return lock
    _release(lock)
    return None


@contextmanager
def _removing(path: Path, lock: int) -> Iterator[None]:
    try:
        yield
    finally:
        _remove(path)
        _release(lock)


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`; once in a process, as a folder may be large."""
    with suppress(OSError):  # a folder that cannot be listed
        for entry in [entry for entry in folder.iterdir() if _OURS.fullmatch(entry.name)]:
            with suppress(OSError):  # in use, another user's, or there are no locks
                lock = _lock(entry, wait=False)
                _remove(entry)
                _release(lock)


def _lock(path: Path, *, wait: bool) -> int:
    """Lock a file or folder and return the open descriptor that holds the lock.

    Raises:
        OSError: Another process holds it, or there are none here (Windows, some network file systems).
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOLCK, "this system has no file locks") from error
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _release(lock: int) -> None:
    if lock != _NO_LOCK:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def name_in_errors(path: Path, own: str | None = None) -> Iterator[None]:
    """Let errors of a full disk that name no file, and those whose file contains `own`, name `path`."""
    try:
        yield
    except OSError as error:
        is_unnamed = error.filename is None and error.errno in _FULL
        if is_unnamed or (own and own in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
