"""Show where every round stands: its last step, what is out of date, what it cost, what it gained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llava.data_engine.loop.costs import read_whole_rows, round_cost
from llava.data_engine.loop.plan import PLAN_FILE, read_plan
from llava.data_engine.loop.pool import POOL_FILE, read_pool
from llava.data_engine.loop.round import (
    ACCEPTED,
    REJECTED,
    REQUESTS,
    RESPONSES,
    ROUND_FILE,
    find_rounds,
    read_settings,
)
from llava.data_engine.loop.score import AFTER, format_gain, gain_on, read_after, read_before
from llava.data_engine.loop.split import SPLIT_FILE, read_parts
from llava.data_engine.requests.rows import require_current_plan
from llava.errors import DataError, LlavaError, one_line
from llava.scoring.metrics import format_table

# The files of a round in the order of its steps, and how those that a plan leads to are checked.
FILES: dict[str, Callable[[Path], object] | None] = {
    POOL_FILE: read_pool,
    PLAN_FILE: read_plan,
    REQUESTS: require_current_plan,
    **dict.fromkeys((RESPONSES, ACCEPTED, REJECTED)),
    AFTER: None,  # checked when its gain is shown
}
HEADER = (
    "round",
    "arm",
    "model",
    "last file",
    "requests",
    "answered",
    "accepted",
    "rejected",
    "cost",
    "gain",
)


def list_status(rounds: Path) -> str:
    """Return a table of all rounds, and a line for each thing that is wrong with one.

    Raises:
        DataError: The folder is missing.
    """
    if not rounds.is_dir():
        raise DataError(f"{rounds}: no such folder of rounds", code="missing-folder")
    rows, faults = [], []
    for folder in find_rounds(rounds):
        try:
            settings = read_settings(folder)
            row = _row(folder)
        except LlavaError as error:
            faults.append(f"{folder.name}: {one_line(error)}")
            continue
        try:
            gain = _gain(folder)
        except LlavaError as error:
            gain = "-"
            faults.append(f"{folder.name}: {one_line(error)}")
        rows.append([folder.name, settings.arm, settings.model_id or "-", *row, gain])
        faults += [f"{folder.name}: {fault}" for fault in _faults(folder)]
    table = format_table(HEADER, rows)
    return "\n".join([_about_split(rounds), *([table] if rows else ["no round yet"]), *faults])


def _about_split(rounds: Path) -> str:
    if not (rounds / SPLIT_FILE).is_file():
        return f"no {SPLIT_FILE} yet: start with `llava engine split`"
    split = read_parts(rounds)
    sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in split.parts.items())
    return f"{split.benchmark}: {sizes}" + (" (--paper: nothing is held out)" if split.paper else "")


def _row(folder: Path) -> list[str]:
    there = [name for name in FILES if (folder / name).is_file()]
    found = [read_whole_rows(folder / name) for name in (REQUESTS, RESPONSES, ACCEPTED, REJECTED)]
    counts = ["-" if rows is None else f"{len(rows):,}" for rows in found]
    cost = round_cost(folder)
    return [there[-1] if there else ROUND_FILE, *counts, "-" if cost is None else f"${cost:,.2f}"]


def _faults(folder: Path) -> list[str]:
    """Return why a step must run again, if so."""
    for name, read in FILES.items():
        if read is not None and (folder / name).is_file():
            try:
                read(folder)
            except LlavaError as error:
                return [one_line(error)]
    return []


def _gain(folder: Path) -> str:
    """Return the gain of a round's model over the base on the hold-out."""
    after = read_after(folder)
    return "-" if after is None else format_gain(gain_on(read_before(folder.parent), after))
