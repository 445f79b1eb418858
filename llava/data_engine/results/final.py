"""Look at the frozen part, once: `rounds/final.json` keeps the result and which scores it is from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llava.data_engine.loop.gains import compare_pairs, gain_row, match_verdicts
from llava.data_engine.loop.round import SCHEMA, read_step, require_unchanged
from llava.data_engine.loop.score import HeldOut, read_before
from llava.data_engine.loop.split import read_parts
from llava.data_engine.results.summary import GUIDED, read_entries
from llava.errors import DataError, SettingsError
from llava.files import write_json
from llava.schema import JsonObject, Verdict
from llava.scoring.metrics import read_scores

FINAL = "final.json"
STEP = "llava engine report --final"


def look_at_frozen(rounds: Path) -> JsonObject:
    """Compare each arm's last model with the base on the frozen part, and keep the result.

    Raises:
        SettingsError: The split has no frozen part, or it was looked at with other models.
        DataError: No round is scored, or a metrics.json has changed or is gone.
    """
    split = read_parts(rounds)
    if not split.parts["frozen"]:
        raise SettingsError(f"{rounds}: the split has no frozen part (--paper has none)", code="no-frozen")
    last = {entry.arm: entry for entry in read_entries(rounds) if entry.after}
    if not last:
        raise DataError(f"{rounds}: no round is scored; `llava engine score` does", code="not-scored")
    before = read_before(rounds)
    models = {arm: entry.after for arm, entry in last.items() if entry.after}
    inputs = {"base": before.sha256, **{arm: model.sha256 for arm, model in models.items()}}
    if kept := read_final(rounds):
        if kept["inputs"] != inputs:
            raise SettingsError(
                f"{rounds / FINAL}: the frozen part was looked at after {_names(kept['arms'])}; a second look"
                " with other models would not be a test any more",
                code="looked-before",
            )
        return kept
    runs = {name: _frozen(rounds, run) for name, run in {"base": before, **models}.items()}
    arms: dict[str, JsonObject] = {}
    for arm, entry in last.items():
        arms[arm] = {
            "folder": entry.folder.name,
            "model_id": models[arm].model_id,
            "vs_base": _compare(runs["base"], runs[arm]),
        }
    for arm, entry in last.items():
        if arm != GUIDED and GUIDED in last and entry.settings.round == last[GUIDED].settings.round:
            arms[GUIDED][f"vs_{arm}"] = _compare(runs[arm], runs[GUIDED])
    value: JsonObject = {"schema": SCHEMA, "inputs": inputs, "n": len(runs["base"]), "arms": arms}
    write_json(rounds / FINAL, value)
    return value


def read_final(rounds: Path) -> JsonObject | None:
    """Return what the frozen part showed, None if nobody looked.

    Raises:
        DataError: The file is damaged.
    """
    if not (rounds / FINAL).is_file():
        return None
    return read_step(rounds / FINAL, step=STEP, keys={"inputs": dict, "arms": dict, "n": int})


def _frozen(rounds: Path, run: HeldOut) -> tuple[Verdict, ...]:
    if not run.metrics.is_file():
        raise DataError(f"{run.metrics}: no such file; the frozen part is read from it", code="missing-file")
    require_unchanged(run.metrics, run.sha256, step="llava engine score")
    return read_parts(rounds).select(read_scores(run.metrics), "frozen")


def _compare(before: tuple[Verdict, ...], after: tuple[Verdict, ...]) -> JsonObject:
    return gain_row(compare_pairs([(old.score, new.score) for old, new in match_verdicts(before, after)]))


def _names(arms: Mapping[str, JsonObject]) -> str:
    return ", ".join(str(arm["folder"]) for arm in arms.values())
