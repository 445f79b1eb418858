"""Say what a round has cost, and read its files while they are being written."""

from __future__ import annotations

from pathlib import Path

from llava.data_engine.generation.ledger import read_spending
from llava.data_engine.loop.round import LEDGER, RESPONSES
from llava.files import read_jsonl
from llava.schema import JsonObject


def round_cost(folder: Path) -> float | None:
    """Return the most dollars that a round can have cost, with calls that brought no answer; None: not known.

    The ledger tells, if there is one; without prices neither it nor the responses know.

    Raises:
        DataError: The ledger or the responses are damaged.
    """
    rows = read_whole_rows(folder / RESPONSES) or []
    costs = [row["cost"] for row in rows if isinstance(row.get("cost"), int | float)]
    ledger = folder.parent / LEDGER
    spent = read_spending(ledger, folder.resolve().name).total if ledger.is_file() else None
    if not costs:
        return spent or None
    return float(sum(costs)) if spent is None else spent


def read_whole_rows(path: Path) -> list[JsonObject] | None:
    """Return the rows of a file that may be being written, None if there is none.

    Raises:
        DataError: A line is no JSON object.
    """
    return [row for _, row in read_jsonl(path, growing=True)] if path.is_file() else None
