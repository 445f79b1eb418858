"""Logging and progress bars on stderr; results go to stdout."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

_LINE_S = 30.0  # between two lines of a bar without a terminal


def setup_logging() -> None:
    """Log to stderr: everything from rank 0, only warnings and errors from other ranks.

    Pillow's own warnings are hidden: an image that cannot be used is an error here, with its path.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    who = f" [rank {rank}]" if "RANK" in os.environ else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s{who} %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("llava", "__main__"):  # a module run as a command logs under __main__
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.propagate = False


def progress(items: Iterable[Item], *, name: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Yield `items` with a progress bar on stderr; without a terminal, a line every 30 seconds.

    Args:
        items: The work to count.
        name: The label of the bar, e.g. "shard 3".
        total: Number of items, when `items` has no length.
        done: Number of items finished before this run.
    """
    yield from _bar(items, desc=name, total=total, initial=done)


def progress_bar(*, name: str, total: int, unit: str = "it") -> tqdm[Any]:
    """Return a progress bar to advance by `update(n)`; it appears after two seconds.

    With unit "B", sizes are shown in KiB, MiB and so on.
    """
    in_bytes = unit == "B"
    settings: dict[str, Any] = {"unit_scale": True, "unit_divisor": 1024} if in_bytes else {}
    return _bar(None, desc=name, total=total, unit=unit, delay=2.0, **settings)


def _bar(items: Iterable[Any] | None, **settings: Any) -> tqdm[Any]:
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(items, file=sys.stderr, **settings)
    return tqdm(items, mininterval=_LINE_S, maxinterval=_LINE_S, file=_Lines(sys.stderr), **settings)


class _Lines:
    """Writes each state of a bar as a line of its own, where a terminal would show it in place."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        self._stream.flush()
