"""Name the records that a round trains on, and keep in `train.json` what its training file is made of."""

from __future__ import annotations

from pathlib import Path

from llava.data_engine.loop.round import (
    ACCEPTED,
    REQUESTS,
    SCHEMA,
    file_sha256,
    find_rounds,
    read_each,
    read_settings,
    read_step,
)
from llava.errors import DataError, shown
from llava.files import read_jsonl, write_json
from llava.schema import JsonObject

TRAIN = "train.json"
STEP = "llava engine mix --round"


def accepted_of(folder: Path, *, incremental: bool = False) -> list[Path]:
    """Return the accepted records of a round and of the earlier rounds of its arm, in order.

    Args:
        folder: The round's folder.
        incremental: Only those of this round.

    Raises:
        DataError: A round is not cleaned yet or there twice, or a record is of no request of its round.
    """
    wanted = read_settings(folder)
    rounds = [folder]
    if not incremental:
        others = {other: read_settings(other) for other in find_rounds(folder.parent)}
        rounds = [
            other for other, own in others.items() if own.arm == wanted.arm and own.round <= wanted.round
        ]
    for other in read_each(rounds):
        _require_own(other)
    return [other / ACCEPTED for other in rounds]


def _require_own(folder: Path) -> None:
    """Check that a round's accepted records answer its requests."""
    path = folder / ACCEPTED
    if not path.is_file():
        raise DataError(f"{path}: no such file; `llava engine clean {folder}` writes it", code="missing-file")
    known = {row.get("id") for _, row in read_jsonl(folder / REQUESTS)}
    for line, row in read_jsonl(path):
        if row.get("request") not in known:
            raise DataError(
                f"{path}:{line}: of request {shown(row.get('request'))}, which is not in {REQUESTS} beside"
                " it; is it of another round?",
                code="other-round",
            )


def keep_lineage(folder: Path, report: JsonObject, *, incremental: bool) -> None:
    """Write `train.json`: the sha256 of all that a round's training file was made of, and its own.

    Args:
        folder: The round's folder.
        report: What `pipeline.convert_files` returned.
        incremental: Whether the earlier rounds' records were left out.
    """
    settings, base = read_settings(folder), report["base"]
    value: JsonObject = {
        "schema": SCHEMA,
        "round": settings.round,
        "arm": settings.arm,
        "incremental": incremental,
        "accepted": [
            {"path": f"../{Path(path).parent.name}/{ACCEPTED}", "sha256": file_sha256(Path(path))}
            for path in report["settings"]["engine"]
        ],
        "records": report["used"],
        "added": report["added"],
        "base": base,
        "modes": {mode: report["settings"]["shares"].get(mode, 1.0) for mode in report["settings"]["modes"]},
        "seed": report["settings"]["seed"],
        "output": {"path": str(Path(report["output"]).resolve()), "sha256": report["sha256"]},
    }
    write_json(folder / TRAIN, value)


def read_lineage(folder: Path) -> JsonObject | None:
    """Return a round's `train.json`, None if it has none.

    Raises:
        DataError: It is damaged.
    """
    if not (folder / TRAIN).is_file():
        return None
    keys = {"round": int, "arm": str, "accepted": list, "records": int, "added": int, "output": dict}
    return read_step(folder / TRAIN, step=STEP, keys=keys)
