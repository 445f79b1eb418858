"""The file `metrics.json` that every scored run writes, and the formatting of its numbers.

All benchmarks share one schema::

    {"schema": 1,
     "benchmark": "seed", "split": "image", "model_id": "llava-v1.5-7b",
     "source": "the program whose rule is used",
     "headline": "image",                    the score that papers quote, in group "total"
     "counts": {"questions", "answered", "unanswered", "unparsable", "duplicates"},
     "notes": ["2 of 100 questions have no answer and count as wrong (--allow-missing)"],
     "warnings": ["all 8910 answers are empty"],
     "judge": "gpt-4",                       the model that graded the answers, where one did
     "scores": [{"group": "type", "name": "Instance Location",
                 "value": 61.2,              percent unless the note says otherwise; null = not available
                 "n": 978, "of": 978,        questions that were scored, and that the official file has
                 "quoted": false,            whether papers quote this number
                 "low": 58.1, "high": 64.2, "interval": "wilson" | "bootstrap" | "none",
                 "better": "higher" | "lower", "note": "",
                 "over": {"type": "Instance Location"} | null, "units": {...} | null, "parts": [...],
                 "top": 100.0, "effective": null}],
     "verdicts": [{"question_id": 101669, "type": "Instance Location", "facets": {},
                   "score": 0.0, "answer": "B", "truth": "A",
                   "status": "answered" | "unparsable" | "unanswered" | "unjudged" (only a server can),
                   "image": "SEED-Bench-image/...", "question": "...", "asked": ""}]}

Verdicts are in the order of the question file; two runs over the same questions pair by id.
`llava.schema.Score` explains `over`, `units`, `parts`, `top` and `effective`. Readers ignore other keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from sys import float_info
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llava.errors import DataError, shown
from llava.files import atomic_write, read_json
from llava.schema import JsonObject, Score, Scores, Verdict

FILE_NAME = "metrics.json"
SCHEMA = 1
PERCENT = 100.0
# Groups of scores that the file has and tables leave out.
DETAILS = frozenset({"confusion"})
PARTIAL = (
    "k of n: scored over k questions, while the official benchmark and published figures have n; "
    "scores whose n is not known may be partial, too"
)
LONG_KEYS = {"scores", "verdicts"}


def write_scores(folder: Path, scores: Scores, *, extra: JsonObject | None = None) -> Path:
    """Write the scores to `folder`/metrics.json atomically, and return its path.

    Args:
        folder: Where to write; it is made if it is missing.
        scores: The scores of a run.
        extra: Further keys of the file. Where the scores have the same key, theirs is written.
    """
    path = folder / FILE_NAME
    with atomic_write(path) as stream:
        # One score or verdict per line keeps a file of 200,000 verdicts readable and small.
        entries = {**(extra or {}), "schema": SCHEMA, **_fields(scores)}
        for number, key in enumerate(sorted(entries, key=LONG_KEYS.__contains__)):
            value = entries[key]
            stream.write(f"{',' if number else '{'}\n{json.dumps(key)}: ")
            if key in LONG_KEYS:
                rows = (json.dumps(_fields(row), ensure_ascii=False) for row in value)
                stream.write("[\n" + ",\n".join(rows) + "\n]")
            else:
                stream.write(json.dumps(value, ensure_ascii=False))
        stream.write("\n}\n")
    return path


def _fields(item: Scores | Score | Verdict) -> JsonObject:
    return {field.name: getattr(item, field.name) for field in fields(item)}


def read_scores(path: Path) -> Scores:
    """Read the scores in `path`, a metrics.json or a folder that contains one.

    Raises:
        DataError: The file is missing, has another schema, or lacks a key.
    """
    path = path / FILE_NAME if path.is_dir() else path
    value = read_json(path, strict=True)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"{path}: schema is {found!r}, wanted {SCHEMA}; write it with `python -m llava.benchmarks score`",
            code="wrong-schema",
        )
    try:
        scores = Scores(
            benchmark=value["benchmark"],
            headline=value["headline"],
            scores=tuple(_score(row, value["headline"]) for row in value["scores"]),
            verdicts=tuple(Verdict(**row) for row in value["verdicts"]),
            counts=value["counts"],
            source=value["source"],
            model_id=value["model_id"],
            split=value["split"],
            notes=tuple(value["notes"]),
            warnings=tuple(value.get("warnings", ())),
            judge=value.get("judge", ""),
        )
        _check_types(scores)
        for verdict in scores.verdicts:
            _check_types(verdict)
        for score in scores.scores:
            _check_types(score)
            for part in score.parts:
                scores.get(part, "type")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not match schema {SCHEMA} ({error}); score the answers again",
            code="wrong-schema",
        ) from error
    return scores


def _checker(hint: Any) -> Callable[[Any], bool]:
    """Return whether a JSON value is of a type that a field of our data types has."""
    parts = get_args(hint)
    checks = [_checker(part) for part in parts]
    if get_origin(hint) is Literal:
        return lambda value: value in parts
    if get_origin(hint) is UnionType:
        return lambda value: any(check(value) for check in checks)
    if get_origin(hint) is dict:
        return lambda value: isinstance(value, dict) and all(map(checks[1], value.values()))
    if get_origin(hint) is tuple:
        return lambda value: all(map(checks[0], value))
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return lambda value: (
            isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= float_info.max
        )
    return lambda value: isinstance(value, hint)


_CHECKERS = {
    kind: {name: _checker(hint) for name, hint in get_type_hints(kind).items()}
    for kind in (Scores, Score, Verdict)
}


def _check_types(item: Scores | Score | Verdict) -> None:
    for name, fits in _CHECKERS[type(item)].items():
        if not fits(value := getattr(item, name)):
            raise TypeError(f"{name} is {shown(value)}")


def _score(row: JsonObject, headline: str) -> Score:
    # Older files lack the largest possible value; it is at least the largest there is. Of the numbers that
    # papers quote they name one, the headline.
    top = max(PERCENT, row["value"] or 0.0, *(row["units"] or {}).values())
    is_headline = (row["group"], row["name"]) == ("total", headline)
    return Score(**{"top": top, "quoted": is_headline, **row, "parts": tuple(row["parts"])})


def format_value(value: float | None) -> str:
    """Format a score with two decimals, or "n/a" if there is none."""
    return "n/a" if value is None else f"{value:.2f}"


def format_score(scores: Scores, score: Score) -> str:
    """Format one of `scores`, marked with `!` if a warning is about them."""
    return format_value(score.value) + ("!" if scores.warnings and score.value is not None else "")


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval such as `[58.10, 64.20]`, or "-" if there is none."""
    return "-" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align the cells for a terminal: left in the first column and in columns without heading, else right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 or not header[column] else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
