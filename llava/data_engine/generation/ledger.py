"""Remember every call to a server, with its money, so that no answer is paid for twice and no budget passed.

A call is written down before it is made, with the most it can cost, and settled when its outcome is known. A
call that is still open when a ledger is opened was in flight when its process was killed: the server may have
answered and charged it, so it counts at its full reservation. One process at a time holds the ledger.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.data_engine.generation.prices import Usage
from llava.errors import DataError, one_line

logger = logging.getLogger(__name__)

_VERSION = 1
_TABLES = f"""
CREATE TABLE attempts (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, round TEXT NOT NULL, model TEXT NOT NULL,
    started REAL NOT NULL, state TEXT NOT NULL, reserved REAL NOT NULL, cost REAL NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER, detail TEXT
);
CREATE INDEX attempts_key ON attempts (key);
CREATE INDEX attempts_round ON attempts (round, state);
CREATE TABLE responses (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, model TEXT NOT NULL, finish_reason TEXT,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    cost REAL NOT NULL
);
PRAGMA user_version = {_VERSION};
"""
# A sum of many dollars differs from the true one in its last digits.
_ROUNDING = 1e-9

State = Literal["open", "answered", "refused", "unknown", "lost"]
"""The state of an attempt.

"open" in flight, "answered" paid for with its answer kept, "refused" by the server and free, "unknown" ended
without an answer and perhaps charged, "lost" in flight when its process was killed and perhaps charged. The
last two cost their reservation.
"""


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer.

    Attributes:
        text: What the model wrote.
        model: What the server calls the model.
        usage: The tokens, as the server counted them.
        finish_reason: Why it ended: "stop", "length", or another word of the server's.
    """

    text: str
    model: str
    usage: Usage
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Paid:
    """A completion of the ledger, with its dollars and the number of attempts that its request took."""

    completion: Completion
    cost: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Spending:
    """What a round has cost so far, in dollars and calls.

    Attributes:
        answered: Dollars for the answers kept.
        perhaps: The most dollars of calls whose outcome is not known.
        open: Reserved dollars of calls in flight.
        lost: Calls in flight when a process was killed.
        unknown: Calls that ended without an answer although they may be charged.
        refused: Calls that the server refused, which are free.
    """

    answered: float
    perhaps: float
    open: float
    lost: int
    unknown: int
    refused: int

    @property
    def total(self) -> float:
        """Return the most dollars that the round can have cost."""
        return self.answered + self.perhaps + self.open


class Ledger:
    """The calls and answers in one SQLite file. Use `open_ledger`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Nobody else writes while this process holds the ledger, so the sums need no new query for each call.
        self._totals: dict[str, float] = {}
        self._open: dict[int, tuple[str, float]] = {}

    def reserve(self, key: str, round_name: str, model: str, most: float, budget: float | None) -> int | None:
        """Write down a call that is about to be made, if the budget of its round allows it.

        Args:
            key: The request's hash.
            round_name: Whose budget it is.
            model: The model that is asked.
            most: The most dollars that the call can cost.
            budget: The most dollars of the round; None for no limit.

        Returns:
            The number of the attempt; None if the money left is not enough.
        """
        if budget is not None and self.total(round_name) + most > budget + _ROUNDING:
            return None
        attempt = self._connection.execute(
            "INSERT INTO attempts (key, round, model, started, state, reserved, cost)"
            " VALUES (?, ?, ?, ?, 'open', ?, ?)",
            (key, round_name, model, time.time(), most, most),
        ).lastrowid
        assert attempt is not None
        self._totals[round_name] = self.total(round_name) + most
        self._open[attempt] = round_name, most
        return attempt

    def settle(self, attempt: int, completion: Completion, cost: float) -> None:
        """Keep the answer to a reserved call, and what it cost in place of the reservation."""
        self._count(attempt, cost)
        usage = completion.usage
        tokens = (usage.prompt, usage.completion, usage.cached, cost)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "UPDATE attempts SET state = 'answered', prompt_tokens = ?, completion_tokens = ?,"
                " cached_tokens = ?, cost = ? WHERE number = ?",
                (*tokens, attempt),
            )
            self._connection.execute(
                "INSERT OR IGNORE INTO responses SELECT key, ?, ?, ?, ?, ?, ?, ? FROM attempts"
                " WHERE number = ?",
                (completion.text, completion.model, completion.finish_reason, *tokens, attempt),
            )

    def fail(self, attempt: int, *, charged: bool, detail: str) -> None:
        """Write down that a reserved call brought no answer.

        Args:
            attempt: Its number.
            charged: Whether the server may charge for it all the same; it then costs its reservation.
            detail: Why it failed.
        """
        state: State = "unknown" if charged else "refused"
        cost = self._open[attempt][1] if charged else 0.0
        self._count(attempt, cost)
        self._connection.execute(
            "UPDATE attempts SET state = ?, cost = ?, detail = ? WHERE number = ?",
            (state, cost, detail, attempt),
        )

    def find(self, key: str) -> Paid | None:
        """Return the answer that was paid for, or None."""
        row = self._connection.execute(
            "SELECT text, model, finish_reason, prompt_tokens, completion_tokens, cached_tokens, cost,"
            " (SELECT COUNT(*) FROM attempts WHERE attempts.key = responses.key)"
            " FROM responses WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        text, model, reason, prompt, completion, cached, cost, attempts = row
        return Paid(Completion(text, model, Usage(prompt, completion, cached), reason), cost, attempts)

    def spending(self, round_name: str) -> Spending:
        """Return what the calls of one round have cost."""
        return _spending(self._connection, round_name)

    def total(self, round_name: str) -> float:
        """Return the most dollars that a round can have cost so far, with the calls in flight."""
        if round_name not in self._totals:
            self._totals[round_name] = self.spending(round_name).total
        return self._totals[round_name]

    def _count(self, attempt: int, cost: float) -> None:
        """Put the cost of a call that is over in place of its reservation."""
        round_name, reserved = self._open.pop(attempt)
        self._totals[round_name] = self.total(round_name) + cost - reserved

    def mean_completion(self, model: str) -> float | None:
        """Return the mean length of this model's answers so far, in tokens; None if there are none."""
        row = self._connection.execute(
            "SELECT AVG(completion_tokens) FROM attempts WHERE model = ? AND state = 'answered'", (model,)
        )
        mean: float | None = row.fetchone()[0]
        return mean

    def _mark_lost(self) -> None:
        count = self._connection.execute("UPDATE attempts SET state = 'lost' WHERE state = 'open'").rowcount
        if count:
            logger.warning(
                "%d calls were in flight when an earlier run was killed; their answers are lost, and they"
                " count as paid for in full",
                count,
            )


def read_spending(path: Path, round_name: str) -> Spending:
    """Return what a round has cost; another process may be using the ledger.

    Raises:
        DataError: The file is no ledger.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _spending(connection, round_name)
    except sqlite3.Error as error:
        raise DataError(f"{path}: no ledger ({one_line(error)})", code="not-a-ledger") from error


def _spending(connection: sqlite3.Connection, round_name: str) -> Spending:
    rows = connection.execute(
        "SELECT state, COUNT(*), TOTAL(cost) FROM attempts WHERE round = ? GROUP BY state", (round_name,)
    )
    found = rows.fetchall()
    count = {state: number for state, number, _ in found}
    dollars = {state: cost for state, _, cost in found}
    return Spending(
        answered=dollars.get("answered", 0.0),
        perhaps=dollars.get("unknown", 0.0) + dollars.get("lost", 0.0),
        open=dollars.get("open", 0.0),
        lost=count.get("lost", 0),
        unknown=count.get("unknown", 0),
        refused=count.get("refused", 0),
    )


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Yield the ledger at `path`, made if it is new; waits while another process uses it.

    Raises:
        DataError: The file is no ledger of this version, or cannot be written.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another run uses %s; waiting for it", path)
        lock.acquire()
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _prepare(connection, path)
            ledger = Ledger(connection)
            ledger._mark_lost()
            yield ledger
        except sqlite3.Error as error:
            raise DataError(f"{path}: {one_line(error)}", code="broken-ledger") from error
        finally:
            connection.close()
    finally:
        lock.release()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        is_new = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
        if is_new:
            connection.executescript("BEGIN;" + _TABLES + "COMMIT;")
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: not a ledger ({one_line(error)})", code="not-a-ledger") from error
    if not is_new and version != _VERSION:
        raise DataError(
            f"{path}: a ledger of version {version}, wanted {_VERSION}; use another file", code="not-a-ledger"
        )
