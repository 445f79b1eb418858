"""Follow a training record back: record, request, response, prompt version, bad cases, scored answers.

Each file is compared with the sha256 that the next step recorded of it. Where a link is broken, the trace
says so and goes on as far as it can.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llava.data_engine.cleaning.clean import REPORT as CLEAN_REPORT
from llava.data_engine.lineage.training import read_lineage
from llava.data_engine.loop.plan import PLAN_FILE, read_plan
from llava.data_engine.loop.plan import STEP as PLAN_STEP
from llava.data_engine.loop.pool import POOL_FILE, read_pool
from llava.data_engine.loop.pool import STEP as POOL_STEP
from llava.data_engine.loop.round import (
    ACCEPTED,
    REQUESTS,
    RESPONSES,
    find_rounds,
    require_unchanged,
)
from llava.data_engine.records import parse_record
from llava.data_engine.requests.retrieve import STEP as RETRIEVE_STEP
from llava.data_engine.requests.versions import read_versions
from llava.data_engine.text import Unusable
from llava.errors import DataError, LlavaError, one_line
from llava.files import read_json, read_jsonl
from llava.schema import JsonObject

_ID = re.compile(r"(?:engine_[a-z]+_)?([0-9a-f]{16})")
_CLEAN_STEP = "llava engine clean"
# Of a text, in a line.
_LONGEST = 160


@dataclass(slots=True)
class Trace:
    """What is known of a record: `lines` to read, and a sentence for each broken link."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, what: str, text: str) -> None:
        """Add a link of the chain."""
        self.lines.append(f"{what:<10} {text}")

    @contextmanager
    def link(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a broken link."""
        try:
            yield
        except LlavaError as error:
            self.broken.append(f"{what}: {one_line(error)}")
            self.add(what, f"BROKEN: {one_line(error)}")


def trace_record(rounds: Path, identifier: str) -> Trace:
    """Return where a training record of a round came from.

    Args:
        rounds: The folder of all rounds.
        identifier: Its id in a training file, such as `engine_mc_0123456789abcdef`, or these 16 digits.

    Raises:
        DataError: The id is none of a round's record, or no round has the record.
    """
    match = _ID.fullmatch(identifier)
    if match is None:
        raise DataError(
            f"id {identifier!r}: wanted engine_MODE_ and 16 hex digits; records of other files are numbered,"
            " and no round made them",
            code="not-a-round-record",
        )
    trace = Trace()
    for folder in find_rounds(rounds):
        for line, row in read_jsonl(folder / ACCEPTED) if (folder / ACCEPTED).is_file() else ():
            if _name_of(row) == match[1]:
                _follow(trace, folder, line, row)
    if not trace.lines:
        raise DataError(
            f"{rounds}: no round's {ACCEPTED} has the record {identifier}; has it been cleaned again since?",
            code="unknown-record",
        )
    return trace


def _name_of(row: JsonObject) -> str | None:
    try:
        return parse_record(row, 0).name
    except Unusable:
        return None


def _follow(trace: Trace, folder: Path, line: int, row: JsonObject) -> None:
    """Add all links of one record."""
    trace.add("record", f"{folder / ACCEPTED}:{line} {_quoted(row['instruction'])}, {_quoted(row['image'])}")
    for trained in find_rounds(folder.parent):
        with trace.link("training"):
            _add_training(trace, trained, folder)
    with trace.link("request"):
        _require_read_by_clean(folder, REQUESTS)
        number, request = _find(folder / REQUESTS, row["request"])
        trace.add(
            "request", f"{folder / REQUESTS}:{number} {request['id']}, type {_quoted(request.get('type'))}"
        )
        _add_origin_and_cases(trace, folder, request)
        with trace.link("plan"):
            read_plan(folder)
            require_unchanged(folder / PLAN_FILE, request.get("plan", ""), step="llava engine requests")
    with trace.link("response"):
        _require_read_by_clean(folder, RESPONSES)
        number, response = _find(folder / RESPONSES, row["request"])
        cost = response.get("cost")
        money = "cost not known" if cost is None else f"${cost:.4f}"
        trace.add("response", f"{folder / RESPONSES}:{number} by {_quoted(response.get('model'))}, {money}")
    with trace.link("answers"):
        metrics = read_pool(folder)["metrics"]
        require_unchanged(Path(metrics["path"]), metrics["sha256"], step=POOL_STEP)
        trace.add("answers", f"{metrics['path']} (sha256 {metrics['sha256'][:12]}, unchanged)")


def _add_training(trace: Trace, trained: Path, folder: Path) -> None:
    """Say that a round's training file was made of the record's file, if it was."""
    lineage = read_lineage(trained)
    used = lineage["accepted"] if lineage else []
    for entry in used:
        if entry["path"] == f"../{folder.resolve().name}/{ACCEPTED}" and lineage:
            require_unchanged(folder / ACCEPTED, entry["sha256"], step=f"llava engine mix --round {trained}")
            trace.add("training", f"{lineage['output']['path']}, of round {trained.name}")


def _require_read_by_clean(folder: Path, name: str) -> None:
    """Check that cleaning read this file of the round as it is now."""
    inputs = read_json(folder / CLEAN_REPORT).get("inputs", {})
    recorded = next((sha256 for path, sha256 in inputs.items() if Path(path).name == name), "")
    require_unchanged(folder / name, recorded, step=_CLEAN_STEP)


def _find(path: Path, name: str) -> tuple[int, JsonObject]:
    for line, row in read_jsonl(path):
        if row.get("id") == name:
            return line, row
    raise DataError(f"{path}: has no row of request {name!r}", code="unknown-request")


def _add_origin_and_cases(trace: Trace, folder: Path, request: JsonObject) -> None:
    """Add the prompt of a request, or the existing record that it took, and its bad cases."""
    if "source" in request:
        with trace.link("source"):
            source = request["source"]
            require_unchanged(Path(source["path"]), source["sha256"], step=RETRIEVE_STEP)
            trace.add("source", f"{source['path']}, record {source['record']}")
    else:
        _add_prompt(trace, folder, request)
    _add_cases(trace, folder, request)


def _add_prompt(trace: Trace, folder: Path, request: JsonObject) -> None:
    template = request.get("template") or {}
    with trace.link("prompt"):
        key = template.get("name"), template.get("version")
        versions = read_versions(folder.parent)
        if key not in {(one.name, one.version) for one in versions}:
            raise DataError(
                f"{folder.parent / 'templates'}: no version {key[1]} of template {key[0]!r}",
                code="no-version",
            )
        trace.add("prompt", f"template {key[0]}, version {key[1]}")


def _add_cases(trace: Trace, folder: Path, request: JsonObject) -> None:
    with trace.link("bad case"):
        rows = read_pool(folder)["types"].values()
        cases = {case["question_id"]: case for row in rows for case in row["cases"]}
        for name in request.get("cases") or []:
            if name not in cases:
                raise DataError(
                    f"{folder / POOL_FILE}: has no bad case {name!r}; was `{POOL_STEP}` run again after"
                    f" `{PLAN_STEP}`?",
                    code="unknown-case",
                )
            case = cases[name]
            said, right = _quoted(case.get("answer")), _quoted(case.get("truth"))
            trace.add("bad case", f"{name} {_quoted(case.get('question'))}: said {said}, right {right}")


def _quoted(value: object) -> str:
    """Return a text on one line; what could steer a terminal is escaped."""
    return repr(value if value is None else str(value)[:_LONGEST])
