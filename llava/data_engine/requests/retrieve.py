"""Take existing records instead of asking a model for new ones: `llava engine retrieve rounds/1-retrieved`.

An arm of such records shows whether generating was needed. Each request of the plan gets the record whose
question is most like a bad case's, as if a model had answered with it: the same rules clean it, and it is
trained on and traced like any other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from llava.data_engine.cleaning.references import split_question
from llava.data_engine.cleaning.rules import check_record
from llava.data_engine.loop.plan import PLAN_FILE, plan_counts, read_plan
from llava.data_engine.loop.pool import question_stem, read_pool
from llava.data_engine.loop.round import (
    REQUESTS,
    RESPONSES,
    RETRIEVED,
    ROUND_FILE,
    RoundSettings,
    file_sha256,
    find_rounds,
    read_settings,
)
from llava.data_engine.loop.similarity import character_vectors
from llava.data_engine.question_types import find_skill
from llava.data_engine.records import EngineRecord, read_rows
from llava.data_engine.requests.choice import take_turns
from llava.data_engine.requests.rows import read_request_rows
from llava.data_engine.requests.writing import with_id
from llava.data_engine.text import Unusable, without_outer_image_tokens
from llava.errors import DataError, SettingsError
from llava.files import write_jsonl
from llava.schema import JsonObject

STEP = "llava engine retrieve"


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """An existing record with options, and its place: the file and the record's number in it."""

    record: EngineRecord
    path: Path

    @property
    def key(self) -> tuple[str, str]:
        """Return the image and the question, which no two records that are taken share."""
        return self.record.image, self.record.instruction


@dataclass(frozen=True, slots=True)
class Pick:
    """A record taken for a request: the request's type, the bad case, and how alike they are (0 to 1)."""

    type: str
    case: JsonObject
    source: KeptRecord
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalReport:
    """What was taken: by type, with the mean similarity (0 to 1) to the bad cases; what cannot be used."""

    taken: Counter[str]
    similarity: float
    usable: int
    unusable: Counter[str]


def retrieve_records(folder: Path, files: Sequence[Path]) -> RetrievalReport:
    """Write a round's requests.jsonl and responses.jsonl from existing records, as its plan divides them.

    Only records that the text rules of cleaning accept count, so that an arm loses few of them later. A
    record that says its question type is taken for that type only. None is taken twice in an arm.

    Args:
        folder: The round's folder; its arm is "retrieved".
        files: Engine records, or LLaVA samples, whose questions with options are taken.

    Raises:
        DataError: The plan or a file is missing or damaged, or too few records fit. Nothing is written then.
        SettingsError: The round is of another arm.
    """
    own, plan, pool = read_settings(folder), read_plan(folder), read_pool(folder)
    if own.arm != RETRIEVED:
        raise SettingsError(
            f"{folder / ROUND_FILE}: arm is {own.arm!r}; wanted {RETRIEVED!r}, in a folder of its own such as"
            f" {folder}-{RETRIEVED}",
            code="other-arm",
        )
    counts = plan_counts(folder, plan, pool)
    sources, unusable = _read_sources(files, _used_before(folder, own))
    if not sources:
        raise DataError(
            f"{', '.join(map(str, files))}: no record with options that can be taken; wanted engine records,"
            " or LLaVA samples with lines 'A. ...'",
            code="too-few-records",
        )
    Random(f"{own.seed} {own.round} {RETRIEVED}").shuffle(sources)  # which of equally near ones is taken
    cases = {name: pool["types"].get(name, {}).get("cases", []) for name in counts}
    picks = list(_pick(counts, cases, sources, Random(f"{own.seed} {own.round} cases")))
    missing = Counter(counts) - Counter(pick.type for pick in picks)
    if missing:
        raise DataError(
            f"{folder / PLAN_FILE}: too few records: none for"
            f" {', '.join(f'{count} requests of {name}' for name, count in missing.items())}, of"
            f" {len(sources):,} that can be taken; name more files, or plan fewer requests",
            code="too-few-records",
        )
    if not picks:
        raise DataError(f"{folder / PLAN_FILE}: no request to make", code="no-requests")
    head: JsonObject = {"round": own.round, "arm": own.arm, "plan": file_sha256(folder / PLAN_FILE)}
    hashes = {path: file_sha256(path) for path in files}
    rows = [_request(head, pick, hashes[pick.source.path]) for pick in picks]
    write_jsonl(folder / REQUESTS, rows)
    write_jsonl(
        folder / RESPONSES,
        (
            {"id": row["id"], "text": _answer(pick.source.record), "model": RETRIEVED, "cost": 0.0}
            for row, pick in zip(rows, picks, strict=True)
        ),
    )
    return RetrievalReport(
        taken=Counter(pick.type for pick in picks),
        similarity=fmean(pick.similarity for pick in picks),
        usable=len(sources),
        unusable=unusable,
    )


def summarize_retrieval(report: RetrievalReport) -> str:
    """Return one line: what was read, taken and cannot be used."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.unusable.most_common()) or "none"
    return (
        f"retrieve: {report.taken.total():,} of {report.usable:,} records taken, {len(report.taken)} types,"
        f" similarity to their bad cases {report.similarity:.2f} in the mean; not usable: {reasons}"
    )


def _used_before(folder: Path, own: RoundSettings) -> set[tuple[str, str]]:
    """Return the keys of the records that earlier rounds of the arm took."""
    found: set[tuple[str, str]] = set()
    for other in find_rounds(folder.parent):
        settings = read_settings(other)
        if settings.arm == own.arm and settings.round < own.round and (other / REQUESTS).is_file():
            for _, row in read_request_rows(other / REQUESTS):
                found.add((str(row.get("image")), str(row.get("question"))))
    return found


def _read_sources(files: Sequence[Path], used: set[tuple[str, str]]) -> tuple[list[KeptRecord], Counter[str]]:
    """Return the records that no rule of cleaning rejects alone, each once, and why the others are not."""
    sources: list[KeptRecord] = []
    unusable: Counter[str] = Counter()
    seen = set(used)
    for path in files:
        for position, row in read_rows(path):
            for candidate in _exchanges(row):
                try:
                    record = check_record(candidate, "", "").record
                except Unusable as fault:
                    # What is wrong with a record's form comes first in the detail.
                    unusable[fault.detail.split()[0] if fault.reason == "schema" else fault.reason] += 1
                    continue
                source = KeptRecord(replace(record, position=position), path)
                if source.key in seen:
                    unusable["taken_before" if source.key in used else "repeated"] += 1
                else:
                    seen.add(source.key)
                    sources.append(source)
    return sources, unusable


def _exchanges(row: object) -> Iterator[Any]:
    """Yield a row as engine records: each question of a LLaVA sample, or the row itself."""
    if not isinstance(row, dict) or "conversations" not in row:
        yield row
        return
    turns = row["conversations"] if isinstance(row["conversations"], list) else []
    texts = [str(turn.get("value", "")) if isinstance(turn, dict) else "" for turn in turns]
    for asked, answer in zip(texts[::2], texts[1::2], strict=False):
        question, options = split_question(str(without_outer_image_tokens(asked)))
        choice = {"options": list(options), "choice_answer": answer.strip()} if options else {}
        yield {
            "image": row.get("image"), "instruction": question, "question_type": row.get("type"), **choice
        }  # fmt: skip


def _pick(
    counts: Mapping[str, int],
    cases: Mapping[str, list[JsonObject]],
    sources: Sequence[KeptRecord],
    random: Random,
) -> Iterator[Pick]:
    """Yield a record for each request, as far as they suffice; the types take turns.

    So do the bad cases of a type, in random order: each takes the nearest record that is still free.
    """
    asked = {name: random.sample(cases[name], len(cases[name])) for name in counts}
    nearest = _Nearest(sources, asked, most=sum(counts.values()))
    gone: set[int] = set()
    turns: Counter[str] = Counter()
    for name in take_turns({name: count for name, count in counts.items() if asked[name]}):
        turn = turns[name] % len(asked[name])
        turns[name] += 1
        found = next((pair for pair in nearest.ranking(name, turn) if pair[0] not in gone), None)
        if found is not None:
            gone.add(found[0])
            yield Pick(name, asked[name][turn], sources[found[0]], found[1])


class _Nearest:
    """The records in the order of their likeness to each bad case, by the cosine of `character_vectors`."""

    def __init__(
        self, sources: Sequence[KeptRecord], asked: Mapping[str, Sequence[JsonObject]], *, most: int
    ) -> None:
        stems = [question_stem(case["question"]) for cases in asked.values() for case in cases]
        vectors = character_vectors([*(source.record.instruction for source in sources), *stems])
        keys = [(name, turn) for name, cases in asked.items() for turn in range(len(cases))]
        self._rows = {key: vectors[len(sources) + number] for number, key in enumerate(keys)}
        self._columns = vectors[: len(sources)].T.tocsr()
        self._skills = [find_skill(source.record.skill) for source in sources]
        self._most = most
        self._found: dict[tuple[str, int], Iterator[tuple[int, float]]] = {}

    def ranking(self, name: str, turn: int) -> Iterator[tuple[int, float]]:
        """Go on with the ranking of a type's bad case: (place of a record, likeness from 0 to 1)."""
        key = name, turn
        if key not in self._found:
            self._found[key] = self._rank(key)
        return self._found[key]

    def _rank(self, key: tuple[str, int]) -> Iterator[tuple[int, float]]:
        import numpy as np

        alike, wanted = (self._rows[key] @ self._columns).toarray()[0], find_skill(key[0])
        if wanted:
            alike[[skill not in (None, wanted) for skill in self._skills]] = -1
        # At most `most` are taken in all, so one of the nearest `most` is always free.
        best = np.argsort(-alike, kind="stable")[: self._most]
        return ((int(place), float(alike[place])) for place in best if alike[place] >= 0)


def _request(head: JsonObject, pick: Pick, sha256: str) -> JsonObject:
    record, case = pick.source.record, pick.case.get("question_id")
    return with_id(
        {
            **head,
            "type": pick.type,
            "image": record.image,
            "question": record.instruction,
            "image_info": {},
            "near": case,
            "cases": [case],
            "source": {
                "path": str(pick.source.path.resolve()), "sha256": sha256, "record": record.position
            },
        }
    )  # fmt: skip


def _answer(record: EngineRecord) -> str:
    """Return the record as a model would have written it."""
    assert record.choice is not None
    row = {
        "instruction": record.instruction,
        "answer": record.answer,
        "short_answer": record.short_answer,
        "options": list(record.choice.options),
        "choice_answer": ascii_uppercase[record.choice.correct],
    }
    return json.dumps({key: value for key, value in row.items() if value is not None})
