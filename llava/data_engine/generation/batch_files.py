"""Exchange requests and answers by files, as OpenAI's batch service and `vllm run-batch` do.

Each shard is a file of its own, small enough for the service and for a lost job to matter little.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.data_engine.generation.bodies import CHAT_URL, Sampling
from llava.data_engine.generation.client import CallError, parse_completion
from llava.data_engine.generation.generate import PlannedCall, RoundBudget, RoundOutcome
from llava.data_engine.generation.ledger import Ledger
from llava.errors import DataError, SettingsError
from llava.files import atomic_folder, read_jsonl
from llava.schema import JsonObject

logger = logging.getLogger(__name__)

MAX_LINES, MAX_BYTES = 5_000, 100_000_000


@dataclass(frozen=True, slots=True)
class ShardLimit:
    """The most that one file may hold. OpenAI takes 50,000 lines and 200 MB."""

    lines: int = MAX_LINES
    size: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.lines < 1 or self.size < 1:
            raise SettingsError(
                f"a shard of {self.lines} lines and {self.size} bytes; wanted 1 or more", code="out-of-range"
            )


def write_batch(
    folder: Path, plans: list[PlannedCall], sampling: Sampling, *, structured: bool, limit: ShardLimit
) -> list[Path]:
    """Write requests as batch files `folder`/input-00000.jsonl and so on, and return their paths.

    Files of an earlier call are removed, so that no request is handed in twice.

    Raises:
        DataError: One request alone is larger than a file may be, or an image is missing.
    """
    with atomic_folder(folder) as staging:
        paths = [
            _write_shard(staging / f"input-{number:05}.jsonl", lines)
            for number, lines in enumerate(_shards(plans, sampling, structured, limit))
        ]
    names = {path.name for path in paths}
    for old in folder.glob("input-*.jsonl"):
        if old.name not in names:
            old.unlink()
    return [folder / name for name in sorted(names)]


def _shards(
    plans: list[PlannedCall], sampling: Sampling, structured: bool, limit: ShardLimit
) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for plan in plans:
        body = plan.request.body(sampling, structured=structured)
        row = {"custom_id": plan.request.id, "method": "POST", "url": CHAT_URL, "body": body}
        line = json.dumps(row).encode() + b"\n"
        if len(line) > limit.size:
            raise DataError(
                f"{plan.request.where}: {len(line):,} bytes with its image; a batch file holds at most"
                f" {limit.size:,}",
                code="too-large",
            )
        if lines and (len(lines) == limit.lines or size + len(line) > limit.size):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield lines


def _write_shard(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def read_results(paths: list[Path]) -> Iterator[tuple[str, JsonObject]]:
    """Yield the place ("FILE:LINE") and the line of each answer in a service's files.

    Raises:
        DataError: A file is not JSON lines.
    """
    for path in paths:
        for number, row in read_jsonl(path):
            yield f"{path}:{number}", row


def take_results(
    results: Iterable[tuple[str, JsonObject]],
    plans: list[PlannedCall],
    ledger: Ledger,
    budget: RoundBudget,
    model: str,
) -> RoundOutcome:
    """Put answers into the ledger as they come, in any order; each has its place, for messages.

    An answer that the ledger has is left alone, so files may be read again. What was not answered is counted
    by its reason: an HTTP status, "batch-error", "broken-body", "unknown-id", or "absent".
    """
    plan_of = {plan.request.id: plan for plan in plans}
    outcome = RoundOutcome(
        requests=len(plans), cached=sum(ledger.find(plan.key) is not None for plan in plans)
    )
    for where, row in results:
        plan = plan_of.get(row["custom_id"]) if isinstance(row.get("custom_id"), str) else None
        if plan is None:
            outcome.failed["unknown-id"] += 1
            logger.warning("%s: custom_id is of no request of this round", where)
        elif ledger.find(plan.key) is None:
            _take(row, plan, ledger, budget, model, outcome)
    absent = sum(ledger.find(plan.key) is None for plan in plans)
    if absent:
        outcome.failed["absent"] = absent
    return outcome


def _take(
    row: JsonObject, plan: PlannedCall, ledger: Ledger, budget: RoundBudget, model: str, outcome: RoundOutcome
) -> None:
    """Record one line: it is paid for already, so no budget can refuse it."""
    attempt = ledger.reserve(plan.key, budget.round_name, model, plan.most, None)
    assert attempt is not None  # there is no limit
    try:
        completion = parse_completion(json.dumps(_answer_body(row)))
    except CallError as error:
        ledger.fail(attempt, charged=error.charged, detail=str(error))
        outcome.failed[error.reason] += 1
        return
    cost = budget.cost(completion.usage) if completion.usage.prompt else plan.most
    ledger.settle(attempt, completion, cost)
    outcome.answered += 1


def _answer_body(row: JsonObject) -> object:
    response = row.get("response")
    if row.get("error") or not isinstance(response, dict):
        raise CallError("batch-error", str(row.get("error"))[:200])
    if response.get("status_code") != 200:
        raise CallError(f"http-{response.get('status_code')}", "in a batch file")
    return response.get("body")
