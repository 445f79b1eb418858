"""Keep what a round's model did on the hold-out (`after.json`), and what the model before any round did.

Only the hold-out's outcomes are kept. The frozen part stays in metrics.json until the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from llava.data_engine.loop.gains import Gain, compare_pairs, match_verdicts, pairing_key
from llava.data_engine.loop.pool import POOL_FILE, read_pool, require_judged
from llava.data_engine.loop.round import (
    SCHEMA,
    file_sha256,
    find_rounds,
    read_settings,
    read_step,
    require_unchanged,
    round_number,
)
from llava.data_engine.loop.split import SPLIT_FILE, read_parts
from llava.errors import DataError
from llava.files import write_json
from llava.schema import JsonObject, Verdict
from llava.scoring.intervals import mean_interval
from llava.scoring.metrics import FILE_NAME, format_interval, read_scores

AFTER, BASE = "after.json", "base.json"
STEP = "llava engine score"
_OUTCOME = ("question_id", "image", "type", "score")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A model's outcomes on the hold-out, as verdicts without texts, and the metrics.json they are from."""

    model_id: str
    metrics: Path
    sha256: str
    verdicts: tuple[Verdict, ...]


def score_round(folder: Path, metrics: Path) -> HeldOut:
    """Write a round's `after.json` from the metrics.json of the model that was trained on it.

    Args:
        folder: The round's folder, with its pool.json.
        metrics: The metrics.json of the new model over the guiding benchmark, or its folder.

    Raises:
        DataError: The scores are of another benchmark or of other questions, of the model that the round
            started from, or of another round or arm; or an answer is not judged.
    """
    settings, pool = read_settings(folder), read_pool(folder)
    found = _measure(folder.parent, metrics)
    taken = {pool["metrics"]["sha256"]: f"the model that {folder.name} started from"}
    for other in find_rounds(folder.parent):
        if other.name != folder.resolve().name and (after := read_after(other)):
            taken[after.sha256] = f"{other.name}'s model"
    if whose := taken.get(found.sha256):
        raise DataError(
            f"{found.metrics}: these are the scores of {whose}; wanted those of the model trained on"
            f" {folder.name}",
            code="other-model",
        )
    _write(folder / AFTER, found, {"round": settings.round, "arm": settings.arm})
    return found


def score_base(rounds: Path, metrics: Path) -> HeldOut:
    """Write `base.json`: the model before any round, if the metrics.json of round 1's pool is gone.

    Raises:
        DataError: The scores are of another benchmark or of other questions, or an answer is not judged.
    """
    found = _measure(rounds, metrics)
    _write(rounds / BASE, found, {})
    return found


def read_after(folder: Path) -> HeldOut | None:
    """Return the outcomes of a round's model, None if it is not scored yet.

    Raises:
        DataError: `after.json` is damaged, of another round, or of another split.
    """
    path = folder / AFTER
    if not path.is_file():
        return None
    value, found = _read(path, folder.parent)
    settings = read_settings(folder)
    if (value.get("round"), value.get("arm")) != (settings.round, settings.arm):
        raise DataError(
            f"{path}: of round {value.get('round')}, arm {value.get('arm')}; the folder is of round"
            f" {settings.round}, arm {settings.arm}; run `{STEP}` again",
            code="other-round",
        )
    return found


def read_before(rounds: Path) -> HeldOut:
    """Return the outcomes of the model before any round: `base.json`, else those in round 1's pool.

    Raises:
        DataError: There is neither, or the metrics.json of the pool has changed or is gone.
    """
    if (rounds / BASE).is_file():
        return _read(rounds / BASE, rounds)[1]
    pooled = [folder for folder in find_rounds(rounds) if (folder / POOL_FILE).is_file()]
    first = next((folder for folder in pooled if round_number(folder) == 1), None)
    if first is None:
        raise DataError(
            f"{rounds}: no pool of round 1, so the base model is not known; `{STEP} {rounds} METRICS --base`"
            " names it",
            code="no-base",
        )
    pool = read_pool(first)
    path = Path(pool["metrics"]["path"])
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, but {first / POOL_FILE} was made of it; `{STEP} {rounds} METRICS --base`"
            " names another place",
            code="missing-file",
        )
    require_unchanged(path, pool["metrics"]["sha256"], step="llava engine pool")
    return _measure(rounds, path)


def gain_on(before: HeldOut, after: HeldOut) -> Gain:
    """Return what one model gained on another over the hold-out."""
    pairs = match_verdicts(before.verdicts, after.verdicts)
    return compare_pairs([(old.score, new.score) for old, new in pairs])


def describe_score(found: HeldOut, before: HeldOut | None, *, paper: bool) -> str:
    """Return the outcomes on the hold-out in one line, with the gain on another model."""
    held_out = "questions (--paper: nothing is held out)" if paper else "held-out questions"
    points = [verdict.score for verdict in found.verdicts]
    low, high = mean_interval(points)
    text = (
        f"score: {found.model_id} has {100 * fmean(points):.2f} {format_interval(100 * low, 100 * high)}"
        f" on {len(points):,} {held_out}"
    )
    return text if before is None else f"{text}; {format_gain(gain_on(before, found))} on {before.model_id}"


def format_gain(gain: Gain) -> str:
    """Format a gain such as `+2.50 [0.50, 4.50]`."""
    return f"{gain.value:+.2f} {format_interval(gain.low, gain.high)}"


def _measure(rounds: Path, metrics: Path) -> HeldOut:
    """Return the hold-out's outcomes in a metrics.json, in the order in which runs are paired."""
    metrics = metrics / FILE_NAME if metrics.is_dir() else metrics
    scores = read_scores(metrics)
    held_out = read_parts(rounds).select(scores, "holdout")
    require_judged(held_out, metrics, "hold-out")
    verdicts = sorted(held_out, key=pairing_key)
    return HeldOut(scores.model_id, metrics.resolve(), file_sha256(metrics), tuple(verdicts))


def _write(path: Path, found: HeldOut, head: JsonObject) -> None:
    split = read_parts(path.parent if path.name == BASE else path.parent.parent)
    outcomes = [{name: getattr(verdict, name) for name in _OUTCOME} for verdict in found.verdicts]
    value: JsonObject = {
        "schema": SCHEMA,
        **head,
        "benchmark": split.benchmark,
        "part": "all" if split.paper else "holdout",
        "questions": split.questions,
        "model_id": found.model_id,
        "metrics": {"path": str(found.metrics), "sha256": found.sha256},
        "outcomes": outcomes,
    }
    write_json(path, value)


def _read(path: Path, rounds: Path) -> tuple[JsonObject, HeldOut]:
    keys = {"questions": str, "model_id": str, "metrics": dict, "outcomes": list}
    value = read_step(path, step=STEP, keys=keys)
    if value["questions"] != read_parts(rounds).questions:
        raise DataError(
            f"{path}: of other questions than {rounds / SPLIT_FILE}; run `{STEP}` again",
            code="other-questions",
        )
    try:
        verdicts = tuple(
            Verdict(
                question_id=row["question_id"],
                type=row["type"],
                score=float(row["score"]),
                answer=None,
                truth="",
                image=row["image"],
            )
            for row in value["outcomes"]
        )
        metrics, sha256 = Path(value["metrics"]["path"]), str(value["metrics"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); run `{STEP}` again", code="wrong-schema") from error
    return value, HeldOut(value["model_id"], metrics, sha256, verdicts)
