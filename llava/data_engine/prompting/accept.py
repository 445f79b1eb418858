"""Try a candidate on the requests that were reviewed and on new ones, and keep it if it helps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.data_engine.loop.round import REQUESTS, read_settings
from llava.data_engine.prompting.trial import (
    draw_requests,
    read_outcome,
    read_prompted,
    sum_rates,
    trial_folder,
)
from llava.data_engine.requests.versions import (
    FOLDER,
    SUFFIX,
    PromptVersion,
    read_versions,
    template_path,
    write_versions,
)
from llava.errors import DataError
from llava.files import atomic_write, read_jsonl, read_text, write_jsonl
from llava.schema import JsonObject

CANDIDATES = "candidates"
SAME, NEW = "same", "new"
Rates = Mapping[str, Mapping[str, int]]
Fill = Callable[[JsonObject], list[JsonObject]]
"""From a request's row to the messages that a template makes of it."""


def candidate_path(rounds: Path, name: str) -> Path:
    """Return the file of a template's candidate, which a person may edit."""
    return rounds / FOLDER / CANDIDATES / (name + SUFFIX)


def find_version(rounds: Path, name: str, version: str) -> PromptVersion:
    """Return a version of the history.

    Raises:
        DataError: It is not there.
    """
    for one in read_versions(rounds):
        if (one.name, one.version) == (name, version):
            return one
    raise DataError(
        f"{rounds / FOLDER}: the history has no version {version} of {name}; make the round's requests again",
        code="unknown-version",
    )


def put_version(rounds: Path, version: PromptVersion) -> None:
    """Write a version to the history, in place of what it says about this version."""
    others = read_versions(rounds)
    places = [i for i, one in enumerate(others) if (one.name, one.version) == (version.name, version.version)]
    if places:
        others[places[0]] = version
    else:
        others.append(version)
    write_versions(rounds, others)


def write_candidate(rounds: Path, name: str, text: str) -> Path:
    """Write a candidate's file.

    Raises:
        DataError: One is there that was not tried yet.
    """
    path = candidate_path(rounds, name)
    if path.is_file():
        waiting = read_text(path)
        tried = any(one.text == waiting and one.pass_rates for one in read_versions(rounds))
        if waiting != text and not tried:
            raise DataError(
                f"{path}: this candidate was not tried yet; accept it with `llava engine prompt accept`, or"
                " remove the file",
                code="candidate-waits",
            )
    with atomic_write(path) as stream:
        stream.write(text)
    return path


def record_candidate(rounds: Path, name: str, parent: str, *, note: str = "") -> PromptVersion:
    """Return the version of the candidate's file; one that is new enters the history, not kept yet.

    Raises:
        DataError: There is no candidate, or it is the parent.
    """
    path = candidate_path(rounds, name)
    if not path.is_file():
        raise DataError(
            f"{path}: no candidate; `llava engine prompt suggest` writes one", code="missing-candidate"
        )
    text = read_text(path)
    own = [one for one in read_versions(rounds) if one.name == name]
    known = next((one for one in own if one.text == text), None)
    if known and (known.version == parent or known.kept):
        raise DataError(f"{path}: this is version {known.version} already; change a rule", code="no-change")
    if known:
        return known
    new = PromptVersion(name=name, number=len(own) + 1, text=text, parent=parent, note=note, kept=False)
    put_version(rounds, new)
    return new


def write_trial_requests(round_folder: Path, name: str, version: str, per_type: int, fill: Fill) -> Path:
    """Write the requests of a candidate's trial: those that were reviewed, and as many new ones of each type.

    Args:
        round_folder: The round.
        name: The template's.
        version: The candidate.
        per_type: New requests of each type, at most.
        fill: Makes the candidate's messages.

    Returns:
        The trial's folder.
    """
    parent, rows = read_prompted(round_folder, name)
    reviewed = trial_folder(round_folder, name, parent) / REQUESTS
    same = [str(row["id"]) for _, row in read_jsonl(reviewed)]
    rest = {key: row for key, row in rows.items() if key not in same}
    new = draw_requests(rest, per_type, read_settings(round_folder).seed)
    folder = trial_folder(round_folder, name, version)
    folder.mkdir(parents=True, exist_ok=True)
    trials = []
    for part, keys in ((SAME, same), (NEW, new)):
        for key in keys:
            row = rows[key] | {"template": {"name": name, "version": version}, "part": part, "like": key}
            row |= {"messages": fill(rows[key])}
            row["id"] = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
            trials.append(row)
    write_jsonl(folder / REQUESTS, trials)
    return folder


@dataclass(frozen=True, slots=True)
class Decision:
    """What a trial showed.

    Attributes:
        parent: The pass rates of the parent.
        same: Those of the candidate on the parent's requests.
        new: Those of the candidate on new requests.
        objections: Why it is not kept; empty if it is.
    """

    parent: Rates
    same: Rates
    new: Rates
    objections: tuple[str, ...]

    @property
    def both(self) -> Rates:
        """The candidate's pass rates on all its requests."""
        return _add(self.same, self.new)


def decide(round_folder: Path, name: str, parent: str, version: str) -> Decision:
    """Compare a candidate with its parent. Both must be reviewed.

    Raises:
        DataError: A question has no verdict yet.
    """
    old = read_outcome(trial_folder(round_folder, name, parent))
    folder = trial_folder(round_folder, name, version)
    tried = read_outcome(folder)
    for what, outcome, flag in (("parent", old, ""), ("candidate", tried, " --candidate")):
        if outcome.unjudged:
            raise DataError(
                f"{len(outcome.unjudged)} questions of the {what} have no verdict; run `llava engine prompt"
                f" review {round_folder}{flag}`, or give --judge",
                code="not-reviewed",
            )
    parts: dict[str, list[str]] = {SAME: [], NEW: []}
    for _, row in read_jsonl(folder / REQUESTS):
        parts[row["part"]].append(row["id"])
    return weigh(old.rates(), tried.rates(parts[SAME]), tried.rates(parts[NEW]))


def weigh(parent: Rates, same: Rates, new: Rates) -> Decision:
    """Return whether a candidate is kept.

    Its pass rate must rise over all requests, must not fall over the new ones, and must fall for no type.
    """
    both, objections = _add(same, new), []
    if not _is_more(_total(both), _total(parent)):
        objections.append(f"the pass rate does not rise: {_say(_total(parent))} to {_say(_total(both))}")
    if new and _is_more(_total(parent), _total(new)):
        objections.append(f"it falls on new requests: {_say(_total(parent))} to {_say(_total(new))}")
    for kind, before in parent.items():
        after = both.get(kind, {"passed": 0, "of": 0})
        if not after["of"]:
            objections.append(f"{kind} has no question to judge")
        elif _is_more(before, after):
            objections.append(f"{kind} falls: {_say(before)} to {_say(after)}")
    return Decision(parent, same, new, tuple(objections))


def keep_candidate(rounds: Path, version: PromptVersion, decision: Decision) -> PromptVersion:
    """Write the outcome to the history, and a kept candidate over its template; return the version."""
    kept = not decision.objections
    note = version.note.partition(" [not kept")[0]
    note += "" if kept else f" [not kept: {'; '.join(decision.objections)}]"
    rates = {kind: dict(row) for kind, row in decision.both.items()}
    outcome = replace(version, note=note.strip(), pass_rates=rates, kept=kept)
    if kept:
        with atomic_write(template_path(rounds, version.name)) as stream:
            stream.write(version.text)
    put_version(rounds, outcome)
    if kept:
        candidate_path(rounds, version.name).unlink(missing_ok=True)
    return outcome


def _add(one: Rates, two: Rates) -> Rates:
    kinds: Sequence[str] = sorted({*one, *two})
    none = {"passed": 0, "of": 0}
    return {
        kind: {key: one.get(kind, none)[key] + two.get(kind, none)[key] for key in none} for kind in kinds
    }


def _total(rates: Rates) -> Mapping[str, int]:
    passed, of = sum_rates(rates)
    return {"passed": passed, "of": of}


def _is_more(one: Mapping[str, int], two: Mapping[str, int]) -> bool:
    """Return whether the first rate is higher. Whole numbers are compared, so that nothing is rounded."""
    return one["passed"] * max(two["of"], 1) > two["passed"] * max(one["of"], 1)


def _say(row: Mapping[str, int]) -> str:
    return f"{row['passed']} of {row['of']}"
