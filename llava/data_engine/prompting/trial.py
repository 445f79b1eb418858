"""A version's trial: requests that were asked with it, what it wrote, and what readers think of that.

A trial is a folder `rounds/K/prompt/NAME/VERSION` with a requests.jsonl and a responses.jsonl as a round has
them, and verdicts.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from llava.data_engine.cleaning.inputs import Asked, complete_record, read_asked
from llava.data_engine.cleaning.parse import parse_response
from llava.data_engine.cleaning.rules import check_record
from llava.data_engine.loop.round import REQUESTS, RESPONSES, read_settings
from llava.data_engine.prompting.verdicts import JudgedItem, read_verdicts
from llava.data_engine.text import Unusable
from llava.errors import DataError
from llava.files import read_jsonl, write_jsonl
from llava.schema import JsonObject
from llava.scoring.metrics import format_table

FOLDER = "prompt"
SKIPPED = "skipped"
_LONGEST_EXCERPT = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question that a version wrote, or a response without one.

    Attributes:
        id: A hash of the request and of what was written.
        request: The request's row.
        question: What was asked; where nothing could be read, the response.
        options: Its options.
        answer: The answer as a text.
        letter: The letter of the right option, as written.
        rule: The cleaning rule that rejects it; empty if none does.
        detail: What the rule found.
    """

    id: str
    request: JsonObject
    question: str
    options: tuple[str, ...] = ()
    answer: str = ""
    letter: str = ""
    rule: str = ""
    detail: str = ""

    @property
    def type(self) -> str:
        """The question type that was asked for."""
        return str(self.request["type"])

    @property
    def lines(self) -> list[str]:
        """The options with their letters."""
        return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, self.options, strict=False)]


def trial_folder(round_folder: Path, name: str, version: str) -> Path:
    """Return the folder of a version's trial in a round."""
    return round_folder / FOLDER / name / version


def read_prompted(folder: Path, name: str) -> tuple[str, dict[str, JsonObject]]:
    """Return the version of a template that a round's requests were made with, and their rows by id.

    Raises:
        DataError: No request was made with it, or requests of several versions.
    """
    number = read_settings(folder).round
    found = {
        key: request.row
        for key, request in read_asked(folder / REQUESTS, number=number, whole=True).items()
        if request.row
        and isinstance(template := request.row.get("template"), dict)
        and template.get("name") == name
    }
    versions = sorted({str(row["template"].get("version")) for row in found.values()})
    if len(versions) != 1:
        raise DataError(
            f"{folder / REQUESTS}: requests of {len(versions)} versions of the template {name}"
            f" {versions or ''}; wanted those of one",
            code="no-single-version",
        )
    return versions[0], found


def read_texts(path: Path) -> dict[str, str]:
    """Return the responses in a responses.jsonl by the request's id."""
    return {str(row.get("id")): str(row.get("text")) for _, row in read_jsonl(path)}


def draw_requests(rows: Mapping[str, JsonObject], per_type: int, seed: int) -> list[str]:
    """Return the ids of at most `per_type` requests of each type, at random."""
    by_type: dict[str, list[str]] = defaultdict(list)
    for key, row in rows.items():
        by_type[str(row["type"])].append(key)
    chosen = []
    for kind, keys in sorted(by_type.items()):
        chosen += random.Random(f"{seed} {kind}").sample(sorted(keys), min(per_type, len(keys)))
    return chosen


def start_trial(round_folder: Path, name: str, per_type: int) -> tuple[str, Path]:
    """Sample what the round's version of a template wrote, unless it is sampled; return version and folder.

    Args:
        round_folder: A round with requests.jsonl and responses.jsonl.
        name: The template's.
        per_type: The requests of each type, at most.

    Raises:
        DataError: There is no response, or one of the sample has changed since it was drawn.
    """
    version, rows = read_prompted(round_folder, name)
    texts = read_texts(round_folder / RESPONSES)
    folder = trial_folder(round_folder, name, version)
    if (folder / RESPONSES).is_file():
        for key, text in read_texts(folder / RESPONSES).items():
            if texts.get(key) != text:
                raise DataError(
                    f"{folder}: the response to request {key} is another one in {round_folder / RESPONSES};"
                    " remove this folder to draw a new sample",
                    code="changed-input",
                )
        return version, folder
    chosen = draw_requests(
        {key: row for key, row in rows.items() if key in texts}, per_type, read_settings(round_folder).seed
    )
    if not chosen:
        raise DataError(
            f"{round_folder / RESPONSES}: no response to a request of the template {name};"
            " `llava engine generate` asks for them",
            code="no-responses",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / REQUESTS, [rows[key] for key in chosen])
    write_jsonl(folder / RESPONSES, [{"id": key, "text": texts[key]} for key in chosen])
    return version, folder


def read_items(folder: Path) -> list[Item]:
    """Return what a version wrote in a trial, in the order of its requests.

    Each cleaning rule that needs one record only is applied; what it rejects needs no reader.
    """
    texts = read_texts(folder / RESPONSES)
    asked = read_asked(folder / REQUESTS, whole=True)
    return [item for key, request in asked.items() if key in texts for item in _items(request, texts[key])]


def _items(request: Asked, text: str) -> list[Item]:
    try:
        records = parse_response(text)
    except Unusable as fault:
        assert request.row is not None
        key, excerpt = _hash(request.row["id"], text), text[:_LONGEST_EXCERPT]
        return [Item(id=key, request=request.row, question=excerpt, rule=fault.reason, detail=fault.detail)]
    return [_item(request, record) for record in records]


def _item(request: Asked, record: JsonObject) -> Item:
    assert request.row is not None
    rule = detail = ""
    try:
        check_record(complete_record(record, request), request.row["id"], request.type)
    except Unusable as fault:
        rule, detail = fault.reason, fault.detail
    options = record.get("options")
    return Item(
        id=_hash(request.row["id"], record),
        request=request.row,
        question=str(record.get("instruction")),
        options=tuple(map(str, options)) if isinstance(options, list) else (),
        answer=str(record.get("answer") or record.get("short_answer") or ""),
        letter=str(record.get("choice_answer") or ""),
        rule=rule,
        detail=detail,
    )


def _hash(request: str, written: object) -> str:
    return hashlib.sha256(json.dumps([request, written], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """A trial's items: those that still want a reader, and the judged ones with their verdicts."""

    unjudged: tuple[Item, ...]
    judged: tuple[tuple[Item, JudgedItem], ...]

    def rates(self, requests: Sequence[str] | None = None) -> JsonObject:
        """Return by type {"passed", "of"}, over these requests only if they are given."""
        found: dict[str, dict[str, int]] = {}
        for item, verdict in self.judged:
            if requests is None or item.request["id"] in requests:
                row = found.setdefault(item.type, {"passed": 0, "of": 0})
                row["passed"] += verdict.passed
                row["of"] += 1
        return dict(sorted(found.items()))


def read_outcome(folder: Path) -> TrialOutcome:
    """Return the verdicts on a trial's items. What a rule rejects failed; what was skipped does not count."""
    verdicts = read_verdicts(folder)
    unjudged, judged = [], []
    for item in read_items(folder):
        if item.rule == SKIPPED:
            continue
        if item.rule:
            judged.append((item, JudgedItem(item.id, passed=False, tag=item.rule, note=item.detail)))
        elif item.id in verdicts:
            judged.append((item, verdicts[item.id]))
        else:
            unjudged.append(item)
    return TrialOutcome(tuple(unjudged), tuple(judged))


def sum_rates(rates: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    """Return how many items of all types passed, and of how many."""
    return sum(row["passed"] for row in rates.values()), sum(row["of"] for row in rates.values())


def rates_table(columns: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return a table of pass rates, with a line for each type and one for all; by column heading."""
    types = sorted({kind for rates in columns.values() for kind in rates})
    rows = [[kind, *(_share(rates.get(kind)) for rates in columns.values())] for kind in types]
    totals = [dict(zip(("passed", "of"), sum_rates(rates), strict=True)) for rates in columns.values()]
    return format_table(("type", *columns), [*rows, ["all", *map(_share, totals)]])


def _share(row: Mapping[str, int] | None) -> str:
    if not row or not row["of"]:
        return "-"
    return f"{row['passed']}/{row['of']} {100 * row['passed'] / row['of']:.0f} %"
