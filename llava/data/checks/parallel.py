"""Map a function over many items in several processes, in order and with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from llava.log import progress_bar

Result = TypeVar("Result")
Range = tuple[int, int]
"""Start and stop of a range of items."""

# A forked process inherits what the function needs, without pickling.
_function: Callable[[Range], object]


def map_ranges(
    function: Callable[[Range], Result], count: int, *, size: int, name: str, workers: int
) -> Iterator[Result]:
    """Yield `function((start, stop))` for all ranges of `size` items, in order.

    Args:
        function: Any callable. Its errors are raised here, its results are pickled.
        count: Number of items.
        size: Items in a range. If one range holds all of them, no process is started.
        name: The label of the progress bar.
        workers: Number of processes.
    """
    ranges = [(start, min(start + size, count)) for start in range(0, count, size)]
    with progress_bar(name=name, total=count) as bar, _mapped(function, ranges, workers) as results:
        for (start, stop), result in zip(ranges, results, strict=True):
            yield result
            bar.update(stop - start)


def count_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _mapped(
    function: Callable[[Range], Result], ranges: list[Range], workers: int
) -> Iterator[Iterator[Result]]:
    if min(workers, len(ranges)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield map(function, ranges)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(
        min(workers, len(ranges)), context, initializer=_set_function, initargs=(function,)
    )
    try:
        yield pool.map(_call_function, ranges)
    finally:
        pool.shutdown(cancel_futures=True)


def _set_function(function: Callable[[Range], object]) -> None:
    global _function
    _function = function


def _call_function(items: Range) -> Any:
    return _function(items)
