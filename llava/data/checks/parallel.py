"""Work on many items in several processes, in order and behind a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from llava.log import progress_bar

Result = TypeVar("Result")
Piece = tuple[int, int]

# A forked process has its own copy of what the work needs, without anything being sent.
_work: Callable[[Piece], Any]


def in_pieces(
    work: Callable[[Piece], Result], count: int, *, size: int, name: str, workers: int
) -> Iterator[Result]:
    """The results of `work((start, stop))` for all pieces of `size` items, in order.

    Args:
        work: May be any callable; its errors are raised here, its results sent by pickle.
        count: Items in all.
        size: Items in a piece; where all fit into one, no process is started.
        name: What the bar is called.
        workers: Processes.
    """
    pieces = [(start, min(start + size, count)) for start in range(0, count, size)]
    with progress_bar(name=name, total=count) as bar, _mapped(work, pieces, workers) as results:
        for (start, stop), result in zip(pieces, results, strict=True):
            yield result
            bar.update(stop - start)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _mapped(work: Callable[[Piece], Result], pieces: list[Piece], workers: int) -> Iterator[Iterator[Result]]:
    if min(workers, len(pieces)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield map(work, pieces)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(workers, len(pieces)), context, initializer=_begin, initargs=(work,))
    try:
        yield pool.map(_one, pieces)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Piece], Any]) -> None:
    global _work
    _work = work


def _one(piece: Piece) -> Any:
    return _work(piece)
