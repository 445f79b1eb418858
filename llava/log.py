"""Logging and progress, set up by commands only: results go to stdout, all else to stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")


def setup_logging() -> None:
    """Send `llava`'s messages to stderr: all of them from a run's first process, warnings from the others."""
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    who = f" [rank {rank}]" if "RANK" in os.environ else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s{who} %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("llava", "__main__"):  # a module that is run as a command logs under the latter
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.propagate = False


def progress(items: Iterable[Item], *, name: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Yield `items` behind a bar on stderr with rate and time left; off a terminal, a line every half minute.

    Args:
        items: What is worked through.
        name: What the bar is called, e.g. "shard 3".
        total: How many there are in all, when `items` has no length.
        done: How many of `total` were finished before this run.
    """
    yield from _bar(items, desc=name, total=total, initial=done)


def progress_bar(*, name: str, total: int, unit: str = "it") -> tqdm[Any]:
    """The same bar, to be told of n more by `update(n)`; not seen where all is done within two seconds.

    A unit of "B" is bytes, shown in thousands of 1024.
    """
    in_bytes = unit == "B"
    settings: dict[str, Any] = {"unit_scale": True, "unit_divisor": 1024} if in_bytes else {}
    return _bar(None, desc=name, total=total, unit=unit, delay=2.0, **settings)


def _bar(items: Iterable[Any] | None, **settings: Any) -> tqdm[Any]:
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, mininterval=interval_s, maxinterval=interval_s, file=sys.stderr, **settings)
