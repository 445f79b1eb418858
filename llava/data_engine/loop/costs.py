"""Say what a round has cost, and read its files while they are being written."""

from __future__ import annotations

from pathlib import Path

from llava.data_engine.generation.ledger import read_spending
from llava.data_engine.loop.round import LEDGER, RESPONSES
from llava.errors import DataError
from llava.json_text import JsonFaultError, parse_json
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
    """Return the rows of a file that may be being written: the last line may be cut short; None: no file.

    Raises:
        DataError: A line is no JSON object.
    """
    if not path.is_file():
        return None
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n") and line.strip():
            try:
                row = parse_json(line.decode())
            except (JsonFaultError, UnicodeDecodeError) as error:
                raise DataError(f"{path}:{number}: {error}", code="not-json") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: wanted a JSON object", code="not-an-object")
            found.append(row)
    return found
