"""Logging and progress bars on stderr; results go to stdout."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn, TextIO, TypedDict, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

# Seconds between two reports of a progress bar, on a terminal and elsewhere.
ON_TERMINAL_S, ELSEWHERE_S = 0.1, 60.0


def setup_logging() -> None:
    """Log to stderr: everything from rank 0, only warnings and errors from other ranks."""
    _quiet_libraries()
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    who = f" [rank {rank}]" if "RANK" in os.environ else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s{who} %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("llava", "__main__"):  # a module run as a command logs under __main__
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.propagate = False


def _quiet_libraries() -> None:
    """Hide what libraries log for their developers; what users can act on, this package says itself."""
    for module in ("torch.distributed", "transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    # Adapters are kept off the vision tower by name, even if it is loaded later.
    warnings.filterwarnings("ignore", message=".*no modules were excluded.*")
    # It looks for a faster kernel that a CPU does not need.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # An image that cannot be used is an error here, with its path.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def progress(items: Iterable[Item], *, name: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Yield `items` with a progress bar on stderr; without a terminal, a line a minute.

    Args:
        items: The work to count.
        name: The label of the bar, e.g. "shard 3".
        total: Number of items, when `items` has no length.
        done: Number of items finished before this run.
    """
    from tqdm import tqdm

    yield from tqdm(items, desc=name, total=total, initial=done, **_place())


def progress_bar(*, name: str, total: int, unit: str = "it") -> tqdm[NoReturn]:
    """Return a progress bar to advance by `update(n)`; it appears after two seconds, see `progress`.

    With unit "B", sizes are shown in KiB, MiB and so on.
    """
    from tqdm import tqdm

    in_bytes = unit == "B"
    step, divisor = (True, 1024) if in_bytes else (False, 1000)
    where = _place(delay_s=2.0)
    return tqdm(desc=name, total=total, unit=unit, unit_scale=step, unit_divisor=divisor, **where)


class _Place(TypedDict):
    """Settings of a bar that depend on where it is shown."""

    file: TextIO | _Lines
    mininterval: float
    maxinterval: float
    ascii: bool | None
    delay: float


def _place(delay_s: float = 0.0) -> _Place:
    if sys.stderr.isatty():
        often = ON_TERMINAL_S
        return {
            "file": sys.stderr, "mininterval": often, "maxinterval": often, "ascii": None, "delay": delay_s
        }  # fmt: skip
    rarely = ELSEWHERE_S
    return {
        "file": _Lines(), "mininterval": rarely, "maxinterval": rarely, "ascii": True, "delay": rarely
    }  # fmt: skip


class _Lines:
    """What a progress bar writes to in place of a terminal: each state becomes a line on stderr."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()
