"""Collect a model's bad cases: per type of the guide part, with accuracy, without look-alikes."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean

from llava.data_engine.loop.round import (
    SCHEMA,
    file_sha256,
    read_settings,
    read_step,
    require_types,
    start_round,
)
from llava.data_engine.loop.similarity import MEASURES, pick_distinct
from llava.data_engine.loop.split import SPLIT_FILE, read_parts
from llava.errors import DataError, SettingsError, shown
from llava.files import write_json
from llava.prompts.wording import LETTER_SUFFIX, LETTER_SUFFIX_CN, SHORT_SUFFIX
from llava.schema import JsonObject, Verdict
from llava.scoring.intervals import mean_interval
from llava.scoring.metrics import FILE_NAME, read_scores

logger = logging.getLogger(__name__)

POOL_FILE = "pool.json"
STEP = "llava engine pool"
_OPTION = re.compile(r"^[A-Z]\. ", re.MULTILINE)
_YES_OR_NO = re.compile(r"answer (?:the question )?(?:with |using )?(?:a )?yes or no", re.IGNORECASE)
_SUFFIXES = (SHORT_SUFFIX, LETTER_SUFFIX, LETTER_SUFFIX_CN)


def question_stem(text: str) -> str:
    """Return a question without its options and the sentence that asks for a kind of answer."""
    for suffix in _SUFFIXES:
        text = text.replace(suffix, "")
    first = _OPTION.search(text)
    stem = text[: first.start()] if first else text
    return stem.strip() or text.strip()


def chance_of(text: str) -> float | None:
    """Return how often a guess answers a question, 1 / options; None if its options are not known."""
    options = len(_OPTION.findall(text))
    if options >= 2:
        return 1 / options
    return 0.5 if _YES_OR_NO.search(text) else None


def make_pool(
    folder: Path,
    metrics: Path,
    *,
    measure: str = "tfidf",
    threshold: float | None = None,
    changes: Sequence[str] = (),
) -> JsonObject:
    """Write a round's `pool.json` from a model's metrics.json, and return it.

    Args:
        folder: The round's folder, beside the rounds' split.json. `round.toml` is written if it is missing.
        metrics: The metrics.json of the model that the round is about, or its folder.
        measure: What tells look-alikes, of `MEASURES`.
        threshold: Above which similarity two questions are alike; None takes the measure's own.
        changes: Settings of a new round, each as `NAME=VALUE`.

    Raises:
        DataError: The scores are of another model, benchmark or questions, or have no bad case.
        SettingsError: There is no such measure, or a setting is wrong.
    """
    if measure not in MEASURES:
        raise SettingsError(
            f"no measure {measure!r}; there are: {', '.join(MEASURES)}", code="unknown-choice"
        )
    threshold = MEASURES[measure].threshold if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise SettingsError(f"threshold is {threshold}; wanted 0 to 1", code="out-of-range")
    metrics = metrics / FILE_NAME if metrics.is_dir() else metrics
    split, scores = read_parts(folder.parent), read_scores(metrics)
    guide, holdout = split.select(scores, "guide"), split.select(scores, "holdout")
    require_judged(guide, metrics, "guide")
    for warning in scores.warnings:
        logger.warning("%s: %s", metrics, warning)
    settings = start_round(folder, model_id=scores.model_id, paper=split.paper, changes=changes)
    held_out = Counter(verdict.type for verdict in holdout)
    by_type: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in guide:
        by_type[verdict.type].append(verdict)
    types = {
        name: _type_row(by_type[name], measure, threshold, Random(f"{settings.seed} {name}"))
        | {"holdout": held_out[name]}
        for name in by_type
    }
    if unseen := held_out.keys() - types.keys():
        logger.warning("%s: no guide question of type %s", metrics, ", ".join(sorted(unseen)))
    if not any(row["bad"] for row in types.values()):
        raise DataError(f"{metrics}: no bad case in the guide part", code="no-bad-cases")
    pool: JsonObject = {
        "schema": SCHEMA,
        "round": settings.round,
        "benchmark": scores.benchmark,
        "part": "all" if split.paper else "guide",
        "split": file_sha256(folder.parent / SPLIT_FILE),
        "metrics": {"path": str(metrics.resolve()), "sha256": file_sha256(metrics)},
        "model_id": scores.model_id,
        "similarity": {"measure": measure, "threshold": threshold},
        "types": types,
    }
    write_json(folder / POOL_FILE, pool)
    return pool


def require_judged(verdicts: Sequence[Verdict], metrics: Path, part: str) -> None:
    """Check that the truth of each question is known, and warn of questions without an answer.

    Raises:
        DataError: Only a server knows the truth of a question.
    """
    statuses = Counter(verdict.status for verdict in verdicts)
    if statuses["unjudged"]:
        raise DataError(
            f"{metrics}: only a server knows the truth of {statuses['unjudged']} questions; guide by another"
            " benchmark or split",
            code="unjudged",
        )
    if statuses["unanswered"]:
        logger.warning(
            "%s: %d %s questions without answer count as wrong, as in its scores; they are no bad cases",
            metrics,
            statuses["unanswered"],
            part,
        )


def _type_row(verdicts: Sequence[Verdict], measure: str, threshold: float, random: Random) -> JsonObject:
    """Return the accuracy of one type and its bad cases."""
    points = [verdict.score for verdict in verdicts]
    low, high = mean_interval(points)
    bad = [each for each in verdicts if each.is_bad and each.status != "unanswered"]
    stems = [question_stem(verdict.question) for verdict in bad]
    kept = []
    if bad:
        kept = pick_distinct(stems, MEASURES[measure].prepare(stems), threshold, random)
    chances = [chance_of(verdict.question) for verdict in verdicts]
    known = [chance for chance in chances if chance is not None]
    return {
        "accuracy": fmean(points),
        "n": len(points),
        "low": low,
        "high": high,
        "chance": fmean(known) if len(known) == len(chances) else None,
        "bad": len(bad),
        "kept": len(kept),
        "cases": [_case(bad[index]) for index in kept],
    }


def _case(verdict: Verdict) -> JsonObject:
    names = ("question_id", "question", "answer", "truth", "image")
    return {name: getattr(verdict, name) for name in names}


def read_pool(folder: Path) -> JsonObject:
    """Return a round's pool, checked against the round.

    Raises:
        DataError: It is missing or damaged, is of another round or model, or the split has changed since.
    """
    path = folder / POOL_FILE
    keys = {
        "round": int, "benchmark": str, "part": str, "split": str, "metrics": dict, "model_id": str,
        "types": dict,
    }  # fmt: skip
    pool = read_step(path, step=STEP, keys=keys)
    settings = read_settings(folder)
    if pool["round"] != settings.round or settings.model_id not in ("", pool["model_id"]):
        raise DataError(
            f"{path}: of round {pool['round']} and model {pool['model_id']}, the folder is of round"
            f" {settings.round} and model {settings.model_id}; run `{STEP}` again",
            code="other-round",
        )
    if not all(isinstance(pool["metrics"].get(key), str) for key in ("path", "sha256")):
        raise DataError(
            f"{path}: metrics is {shown(pool['metrics'])}; wanted path and sha256; run `{STEP}` again",
            code="wrong-schema",
        )
    wanted = "accuracy (0 to 1), n, holdout, kept, chance and a list of cases"
    require_types(path, pool["types"], _is_type_row, wanted=wanted, step=STEP)
    return pool


def _is_type_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("cases"), list):
        return False
    counts = [row.get(name) for name in ("n", "holdout", "bad", "kept")]
    shares = [row.get("accuracy"), row.get("chance") or 0.0]
    return all(isinstance(count, int) and count >= 0 for count in counts) and all(
        isinstance(share, int | float) and 0 <= share <= 1 for share in shares
    )


def describe_pool(pool: JsonObject) -> str:
    """Return the pool as a line for each type and one for all."""
    types = pool["types"]
    width = max(map(len, types))
    lines = [
        f"{name:<{width}}  {100 * row['accuracy']:6.2f} % of {row['n']:>6,}"
        f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]   bad {row['bad']:>6,} -> kept {row['kept']:>6,}"
        for name, row in types.items()
    ]
    bad, kept = (sum(row[key] for row in types.values()) for key in ("bad", "kept"))
    similarity = pool["similarity"]
    part = "all questions (--paper)" if pool["part"] == "all" else "the guide part"
    lines.append(
        f"pool: {sum(row['n'] for row in types.values()):,} questions of {part}, {bad:,} bad cases,"
        f" {kept:,} kept ({kept / bad:.0%}; {similarity['measure']} above {similarity['threshold']} dropped)"
    )
    return "\n".join(lines)
