"""Cut the guiding benchmark into guide, hold-out and frozen parts: once, by image, with every type in each.

Bad cases and weights come from the guide part, each round reports on the hold-out, and the frozen part is
looked at once, at the end. What is about one image lies in one part.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from llava.data_engine.loop.round import SCHEMA, read_step
from llava.errors import DataError, SettingsError
from llava.files import write_json
from llava.schema import JsonObject, RecordId, Scores, Verdict

SPLIT_FILE = "split.json"
PARTS = ("guide", "holdout", "frozen")
SHARES = (0.4, 0.4, 0.2)


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of a benchmark, as sets of question ids. `paper`: guide and hold-out are all questions."""

    benchmark: str
    paper: bool
    questions: str
    parts: dict[str, frozenset[RecordId]]

    def select(self, scores: Scores, part: str) -> tuple[Verdict, ...]:
        """Return the verdicts of one part, in their order.

        Raises:
            DataError: The scores are of another benchmark or of other questions.
        """
        if scores.benchmark != self.benchmark or digest_questions(scores.verdicts) != self.questions:
            raise DataError(
                f"the split is of {self.benchmark} and its questions; these scores are of {scores.benchmark},"
                f" {len(scores.verdicts)} questions; score the same questions, or use another rounds folder",
                code="other-questions",
            )
        return tuple(verdict for verdict in scores.verdicts if verdict.question_id in self.parts[part])


def digest_questions(verdicts: Iterable[Verdict]) -> str:
    """Return the sha256 of the sorted (id, image, type) of all questions."""
    rows = sorted(json.dumps([each.question_id, each.image, each.type]) for each in verdicts)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def make_split(
    rounds: Path, scores: Scores, *, seed: int = 42, shares: Sequence[float] = SHARES, paper: bool = False
) -> Split:
    """Cut a benchmark and write `rounds`/split.json, or check that the split there is this one.

    Args:
        rounds: The folder of all rounds.
        scores: Any run over the benchmark; its answers do not matter.
        seed: Of the random order.
        shares: Of the questions for guide, hold-out and frozen; they add up to 1.
        paper: Guide and report on all questions, as the paper does.

    Raises:
        SettingsError: The shares are not three shares, or the split there has another seed or kind.
        DataError: The split there is of another benchmark or of other questions, or there is nothing to cut.
    """
    if len(shares) != len(PARTS) or min(shares) < 0 or min(shares[:2]) == 0 or abs(sum(shares) - 1) > 1e-9:
        raise SettingsError(
            f"shares are {list(shares)}; wanted three that add up to 1, the first two above 0",
            code="out-of-range",
        )
    if not scores.verdicts:
        raise DataError(f"the scores of {scores.benchmark} have no verdicts to cut", code="no-verdicts")
    wanted = {"seed": seed, "shares": list(shares), "paper": paper}
    path = rounds / SPLIT_FILE
    if path.is_file():
        found = read_parts(rounds)
        found.select(scores, "guide")
        kept = _read(path)
        for name, value in wanted.items():
            if kept[name] != value:
                raise SettingsError(
                    f"{path}: {name} is {kept[name]}, not {value}; a split is written once for all rounds",
                    code="split-exists",
                )
        return found
    everything = _ordered({each.question_id for each in scores.verdicts})
    parts = {"guide": everything, "holdout": everything, "frozen": []}
    if not paper:
        parts = _cut(scores.verdicts, seed, shares)
    head: JsonObject = {"schema": SCHEMA, "benchmark": scores.benchmark, **wanted}
    write_json(path, head | {"questions": digest_questions(scores.verdicts), "parts": parts})
    return read_parts(rounds)


def read_parts(rounds: Path) -> Split:
    """Return the split that all rounds honour.

    Raises:
        DataError: There is none, it is damaged, or an id is in two parts of a split that is no paper's.
    """
    path = rounds / SPLIT_FILE
    value = _read(path)
    try:
        parts = {name: frozenset(value["parts"][name]) for name in PARTS}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: wanted the parts {', '.join(PARTS)}", code="wrong-schema") from error
    if not value["paper"] and sum(map(len, parts.values())) > len(frozenset().union(*parts.values())):
        raise DataError(f"{path}: a question is in two parts", code="wrong-schema")
    return Split(value["benchmark"], value["paper"], value["questions"], parts)


def _read(path: Path) -> JsonObject:
    keys = {"benchmark": str, "seed": int, "shares": list, "paper": bool, "questions": str, "parts": dict}
    return read_step(path, step="llava engine split", keys=keys)


def _ordered(ids: Iterable[RecordId]) -> list[RecordId]:
    return sorted(ids, key=lambda one: (isinstance(one, str), one))


def _cut(verdicts: Sequence[Verdict], seed: int, shares: Sequence[float]) -> dict[str, list[RecordId]]:
    """Return the ids of each part.

    Groups with the rarest types are placed first, each where its types lack most. Source: K. Sechidis, G.
    Tsoumakas and I. Vlahavas, ECML PKDD 2011 (iterative stratification).
    """
    sizes = Counter(verdict.type for verdict in verdicts)
    groups = _groups(verdicts)
    Random(seed).shuffle(groups)
    groups.sort(key=lambda group: min(sizes[verdict.type] for verdict in group))
    lacking = {
        name: {kind: share * size for kind, size in sizes.items()}
        for name, share in zip(PARTS, shares, strict=True)
    }
    parts: dict[str, list[RecordId]] = {name: [] for name in PARTS}
    open_parts = [name for name, share in zip(PARTS, shares, strict=True) if share]
    for group in groups:
        part = max(
            open_parts, key=lambda name: sum(lacking[name][each.type] / sizes[each.type] for each in group)
        )
        for verdict in group:
            lacking[part][verdict.type] -= 1
        parts[part] += {verdict.question_id: None for verdict in group}
    return {name: _ordered(ids) for name, ids in parts.items()}


def _groups(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Return the verdicts that must stay together: about one image, or with one id (SEED repeats one)."""
    leaders: dict[tuple[str, object], tuple[str, object]] = {}

    def leader(key: tuple[str, object]) -> tuple[str, object]:
        while (above := leaders.setdefault(key, key)) != key:
            leaders[key] = leaders[above]
            key = above
        return key

    for verdict in verdicts:
        if verdict.image is not None:
            leaders[leader(("image", verdict.image))] = leader(("id", verdict.question_id))
    groups = defaultdict(list)
    for verdict in verdicts:
        groups[leader(("id", verdict.question_id))].append(verdict)
    return list(groups.values())


def describe_split(split: Split, scores: Scores) -> str:
    """Return the split in one line."""
    if split.paper:
        return (
            f"split: all {len(scores.verdicts):,} questions of {split.benchmark} guide AND are reported on"
            " (--paper, as published): no gain on them is evidence"
        )
    counts = [f"{name} {len(split.select(scores, name)):,}" for name in PARTS]
    return f"split: {len(scores.verdicts):,} questions of {split.benchmark}: {', '.join(counts)}"
