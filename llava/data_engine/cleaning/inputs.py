"""Read a round's requests and responses as cleaning needs them, and earlier rounds' accepted records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.data_engine.cleaning.parse import parse_response
from llava.data_engine.cleaning.types import MOST_TRAINED, TypedQuestion
from llava.data_engine.loop.round import ACCEPTED, REQUESTS, round_number
from llava.data_engine.question_types import find_skill
from llava.data_engine.records import parse_record
from llava.data_engine.requests.rows import read_request_rows
from llava.data_engine.text import Unusable, digest
from llava.errors import DataError, shown
from llava.files import read_jsonl
from llava.schema import JsonObject

# Questions that the check of types learns from.
MOST_LEARNED = 2 * MOST_TRAINED


@dataclass(frozen=True, slots=True)
class Asked:
    """What a record needs of its request. `row` is the whole request, None unless a reader will be asked."""

    type: str
    image: str
    coco_id: object
    row: JsonObject | None


def read_asked(path: Path, *, number: int | None = None, whole: bool = False) -> dict[str, Asked]:
    """Return the requests of one round by id.

    Args:
        path: The round's requests.jsonl.
        number: The round they must be of; None takes any one round.
        whole: Keep the rows.

    Raises:
        DataError: A row lacks a field, an id is there twice, or the rows are of several rounds.
    """
    found: dict[str, Asked] = {}
    for where, row in read_request_rows(path, number=number):
        for key in ("type", "image"):
            if not isinstance(row.get(key), str):
                raise DataError(f"{where}: {key} is {shown(row.get(key))}; wanted a text", code="bad-request")
        info = row.get("image_info")
        coco_id = info.get("coco_id") if isinstance(info, dict) else None
        found[row["id"]] = Asked(row["type"], row["image"], coco_id, row if whole else None)
    return found


def complete_record(row: JsonObject, request: Asked) -> JsonObject:
    """Return a record as a model wrote it, with the image and the type of its request."""
    skill = find_skill(request.type)
    kind = {"qtype": skill.id} if skill else {"question_type": request.type}
    kept = {key: value for key, value in row.items() if key not in ("qtype", "question_type", "image_id")}
    return {**kept, "image": request.image, **kind}


def sample_questions(path: Path, asked: dict[str, Asked]) -> tuple[int, list[TypedQuestion]]:
    """Check every response; return their number, and about `MOST_LEARNED` questions with their types.

    Raises:
        DataError: A response answers no request of this round, or a request has two responses.
    """
    seen: set[str] = set()
    for line, row in read_jsonl(path):
        name = row.get("id")
        if not isinstance(name, str) or name not in asked:
            raise DataError(
                f"{path}:{line}: response to {shown(name)}, which is not in {REQUESTS} beside it; is it"
                " of another round?",
                code="other-round",
            )
        if name in seen:
            raise DataError(f"{path}:{line}: request {name!r} has two responses", code="doubled-response")
        seen.add(name)
    step = max(1, len(seen) // MOST_LEARNED)
    questions: list[TypedQuestion] = []
    for _, row in read_jsonl(path):
        if digest(row["id"]) % step:
            continue
        try:
            rows = parse_response(row.get("text"))
        except Unusable:
            continue
        texts = (item.get("instruction", item.get("question")) for item in rows)
        kind = asked[row["id"]].type
        questions += [TypedQuestion(row["id"], text, kind) for text in texts if isinstance(text, str)]
    return len(seen), questions


def earlier_files(folder: Path) -> list[Path]:
    """Return the accepted records of the rounds with lower numbers than the folder's, in order."""
    number = round_number(folder) or 0
    numbered = [
        (round_number(path.parent) or 0, path) for path in folder.resolve().parent.glob(f"*/{ACCEPTED}")
    ]
    return [path for other, path in sorted(numbered) if 0 < other < number]


def read_accepted(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (image, question, right option or short answer) of every accepted record."""
    for line, row in read_jsonl(path):
        try:
            record = parse_record(row, line)
        except Unusable as fault:
            raise DataError(
                f"{path}:{line}: {fault.reason} {fault.detail}", code="bad-accepted-row"
            ) from fault
        choice = record.choice
        right = choice.options[choice.correct] if choice else record.short_answer or ""
        yield record.image, record.instruction, right
