"""Collect the numbers of all rounds in `rounds/summary.json`, from which the pages are made.

Scores are the mean points of the held-out questions, in percent, and gains are paired over them, with 95 %
intervals. They need not equal a benchmark's headline, which may weigh questions in another way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from llava.data_engine.cleaning.clean import REPORT as CLEAN_REPORT
from llava.data_engine.lineage.training import read_lineage
from llava.data_engine.loop.costs import round_cost
from llava.data_engine.loop.gains import Gain, compare_pairs, gain_row, pairs_by_type
from llava.data_engine.loop.plan import PLAN_FILE, load_plan
from llava.data_engine.loop.pool import POOL_FILE, read_pool
from llava.data_engine.loop.round import (
    REQUESTS,
    SCHEMA,
    RoundSettings,
    find_rounds,
    read_each,
    read_step,
)
from llava.data_engine.loop.score import HeldOut, gain_on, read_after, read_before
from llava.data_engine.loop.split import Split, read_parts
from llava.data_engine.results.stop import judge_rounds
from llava.errors import DataError, shown
from llava.schema import JsonObject, Verdict
from llava.scoring.intervals import mean_interval

SUMMARY_FILE = "summary.json"
# The arm whose rounds the others are compared with.
GUIDED = "guided"


@dataclass(frozen=True, slots=True)
class ArmRound:
    """One round of one arm: its folder, its settings, and what its model did, None before it is scored."""

    folder: Path
    settings: RoundSettings
    after: HeldOut | None

    @property
    def arm(self) -> str:
        """Return the arm's name."""
        return self.settings.arm


def summarize_rounds(rounds: Path) -> JsonObject:
    """Return the numbers of all rounds, as summary.json keeps them.

    Raises:
        DataError: There is no split or no round, a round's files are damaged or of other questions, or a
            round of an arm is there twice.
    """
    split, entries = read_parts(rounds), read_entries(rounds)
    before = read_before(rounds)
    arms: dict[str, list[ArmRound]] = defaultdict(list)
    for entry in entries:
        arms[entry.arm].append(entry)
    found = []
    for number, group in groupby(entries, key=lambda entry: entry.settings.round):
        peers = list(group)
        rows = {entry.arm: _arm_row(entry, arms[entry.arm], peers, before) for entry in peers}
        found.append({"round": number, "arms": rows, "sizes": _compare_sizes(rows)})
    leading = arms[GUIDED] or entries
    return {
        "schema": SCHEMA,
        "benchmark": split.benchmark,
        "paper": split.paper,
        "parts": {name: len(ids) for name, ids in split.parts.items()},
        "base": {"model_id": before.model_id, **_score(before.verdicts)},
        "rounds": found,
        "stop": judge_rounds(
            [(entry.settings.round, entry.after) for entry in leading], before, leading[0].settings.rounds
        ),
        "notes": list(_notes(split, entries, before)),
    }


def read_entries(rounds: Path) -> list[ArmRound]:
    """Return all rounds of all arms, by number.

    Raises:
        DataError: There is none, or a round of an arm is there twice.
    """
    found = [
        ArmRound(folder, own, read_after(folder)) for folder, own in read_each(find_rounds(rounds)).items()
    ]
    if not found:
        raise DataError(f"{rounds}: no round; `llava engine pool` starts one", code="no-rounds")
    return found


def _arm_row(
    entry: ArmRound, arm: Sequence[ArmRound], peers: Sequence[ArmRound], before: HeldOut
) -> JsonObject:
    """Return one arm of one round.

    Args:
        entry: The arm's round.
        arm: All rounds of the arm.
        peers: All arms of the round.
        before: The base model.
    """
    so_far = [other for other in arm if other.settings.round <= entry.settings.round]
    costs = [round_cost(other.folder) for other in so_far]
    known = [cost for cost in costs if cost is not None]
    spent = sum(known) if len(known) == len(costs) else None
    lineage, cleaned = read_lineage(entry.folder), _cleaned(entry.folder)
    row: JsonObject = {
        "folder": entry.folder.name,
        "requests": _count_lines(entry.folder / REQUESTS),
        "smallest_gain": _smallest_gain(entry.folder),
        "accepted": cleaned["accepted"],
        "rejected": cleaned["rejected"],
        "records": lineage["records"] if lineage else cleaned["accepted"],
        "cost": costs[-1],
        "spent": spent,
        "model_id": None,
        **dict.fromkeys(("n", "score", "low", "high", "vs_base", "vs_previous", "per_point")),
        "types": {},
    }
    others = [other for other in peers if entry.arm == GUIDED != other.arm]
    row |= {f"vs_{other.arm}": None for other in others}
    if entry.after is None:
        return row
    earlier = [other.after for other in so_far[:-1] if other.after] or [before]
    gain = gain_on(before, entry.after)
    pairs = pairs_by_type(before.verdicts, entry.after.verdicts)
    row |= {
        "model_id": entry.after.model_id,
        **_score(entry.after.verdicts),
        "vs_base": gain_row(gain),
        "vs_previous": gain_row(gain_on(earlier[-1], entry.after)),
        "per_point": cost_per_point(spent, gain),
        "types": {name: gain_row(compare_pairs(pairs[name])) for name in pairs},
    }
    for other in others:
        if other.after:
            row[f"vs_{other.arm}"] = gain_row(gain_on(other.after, entry.after))
    return row


def cost_per_point(spent: float | None, gain: Gain) -> JsonObject | None:
    """Return the dollars for a point gained on the hold-out, with the interval that the gain's gives.

    None if the cost is not known, or if the gain may be 0 or a loss: then the cost of a point is undefined.
    """
    if spent is None or gain.low <= 0:
        return None
    return {"value": spent / gain.value, "low": spent / gain.high, "high": spent / gain.low}


def _score(verdicts: Sequence[Verdict]) -> JsonObject:
    points = [verdict.score for verdict in verdicts]
    low, high = mean_interval(points)
    return {"n": len(points), "score": 100 * fmean(points), "low": 100 * low, "high": 100 * high}


def _smallest_gain(folder: Path) -> float | None:
    """Return the gain in points that the round's plan said the hold-out could show, None if it said none."""
    if not (folder / PLAN_FILE).is_file():
        return None
    gain: float | None = load_plan(folder)["power"]["overall"]["smallest_gain"]
    return gain


def _count_lines(path: Path) -> int | None:
    """Return how many rows a file has, None if it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _cleaned(folder: Path) -> JsonObject:
    """Return what clean.json says of a round: records accepted, and rejected by each rule, most first.

    Raises:
        DataError: It is damaged.
    """
    path = folder / CLEAN_REPORT
    if not path.is_file():
        return {"accepted": None, "rejected": {}, "checked": True}
    value = read_step(path, step="llava engine clean", keys={"accepted": int, "rejected": dict})
    rejected = sorted(value["rejected"].items(), key=lambda item: (-item[1], item[0]))
    return {
        "accepted": value["accepted"],
        "rejected": dict(rejected),
        "checked": value.get("checked", True),
    }


def _compare_sizes(rows: Mapping[str, JsonObject]) -> str | None:
    """Return a sentence if the arms of a round trained on different numbers of records."""
    sizes = {arm: row["records"] for arm, row in rows.items() if row["records"] is not None}
    if len(set(sizes.values())) < 2:
        return None
    counts = ", ".join(f"{arm} {count:,}" for arm, count in sizes.items())
    return f"The arms trained on different numbers of records ({counts}), so their sizes differ, too."


def _notes(split: Split, entries: Sequence[ArmRound], before: HeldOut) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    notes = []
    if split.paper:
        notes.append(
            "--paper: the questions that guided the rounds are also those reported on. No gain on them is"
            " evidence, and nothing is held out."
        )
    planned = {entry.settings.rounds for entry in entries}
    if len(planned) > 1:
        notes.append(
            f"The rounds disagree on how many were planned ({', '.join(map(str, sorted(planned)))}); the"
            " first round's number divides the chance of a false gain."
        )
    notes += _notes_on_data(entries, before)
    models = {entry.settings.round: entry.after for entry in entries if entry.arm == GUIDED}
    for entry in entries:
        source = before if entry.settings.round == 1 else models.get(entry.settings.round - 1)
        if source is None or not (entry.folder / POOL_FILE).is_file():
            continue
        if read_pool(entry.folder)["metrics"]["sha256"] != source.sha256 and entry.arm == GUIDED:
            notes.append(
                f"{entry.folder.name}: its bad cases are not from the scores of {shown(source.model_id)}, the"
                " model before it."
            )
    return notes


def _notes_on_data(entries: Sequence[ArmRound], before: HeldOut) -> list[str]:
    notes, tested = [], {verdict.type for verdict in before.verdicts}
    for entry in entries:
        planned = load_plan(entry.folder)["types"] if (entry.folder / PLAN_FILE).is_file() else {}
        if unseen := sorted(set(planned) - tested):
            notes.append(f"{entry.folder.name}: no held-out question of type {', '.join(unseen)}.")
        if not _cleaned(entry.folder)["checked"]:
            notes.append(f"{entry.folder.name}: no rule of cleaning was applied (--unchecked).")
    return notes
