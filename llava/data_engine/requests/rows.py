"""Read the rows of a round's requests.jsonl: what every step that uses them checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.data_engine.loop.plan import PLAN_FILE
from llava.data_engine.loop.round import REQUESTS, require_unchanged
from llava.errors import DataError, shown
from llava.files import read_jsonl
from llava.schema import JsonObject

STEP = "llava engine requests"


def read_request_rows(path: Path, *, number: int | None = None) -> Iterator[tuple[str, JsonObject]]:
    """Yield the place ("FILE:LINE") and the row of each request.

    Args:
        path: The requests.jsonl.
        number: The round that the requests must be of; None takes any one round.

    Raises:
        DataError: The file is missing, an id is no text or is there twice, or a row is of another round.
    """
    seen: set[str] = set()
    wanted: object = number
    for line, row in read_jsonl(path, strict=True):
        where = f"{path}:{line}"
        name = row.get("id")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: id is {shown(name)}; wanted a text", code="bad-request")
        if name in seen:
            raise DataError(f"{where}: id {shown(name)} is there twice", code="doubled-request")
        if not seen and number is None:
            wanted = row.get("round")
        seen.add(name)
        if row.get("round") != wanted:
            raise DataError(
                f"{where}: round is {shown(row.get('round'))}, wanted {wanted}; make the requests again",
                code="other-round",
            )
        yield where, row


def require_current_plan(folder: Path) -> None:
    """Check that a round's requests were made from its present plan.

    Raises:
        DataError: The plan has changed since, or the requests cannot be read.
    """
    _, first = next(read_request_rows(folder / REQUESTS), ("", {}))
    if isinstance(sha256 := first.get("plan"), str):
        require_unchanged(folder / PLAN_FILE, sha256, step=STEP)
