"""Compare the metrics.json of several runs in one table, with 95 % intervals of scores and differences.

    llava report BASE/metrics.json TUNED/metrics.json [--baseline BASE] [--format markdown|json]

The other runs are compared with the first run (or `--baseline`). All must have the same questions, in any
order, so the differences are paired. Their interval is Newcombe's for paired proportions when every question
(or image, or group of rows) is right or wrong, else Bonett and Price's for paired means
(`llava.scoring.intervals`). `*` marks a difference whose interval excludes 0, which takes at least six
changed questions. About one question type in twenty is marked by chance, so judge by the total.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llava.errors import DataError, SettingsError
from llava.files import atomic_write, require_distinct
from llava.report.differences import Difference, paired_difference
from llava.report.names import shortest_names
from llava.report.pairing import ComparedRun, align
from llava.schema import Score
from llava.scoring.metrics import (
    DETAILS,
    FILE_NAME,
    PARTIAL,
    format_interval,
    format_score,
    format_value,
    read_scores,
)  # fmt: skip
from llava.scoring.published import PUBLISHED


@dataclass(frozen=True, slots=True)
class Row:
    """One score of one benchmark in every run. `differences` are to run `baseline`, itself None.

    `n` is the number of questions; `count` is its text, as "20 of 14233" where a run has only some of them.
    """

    benchmark: str
    group: str
    name: str
    n: int
    count: str
    scores: tuple[Score | None, ...]
    differences: tuple[Difference | None, ...]
    baseline: int
    is_headline: bool = False

    @property
    def is_quoted(self) -> bool:
        """Whether papers quote this number."""
        return any(score is not None and score.quoted for score in self.scores)


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the metrics.json files in `paths`; a folder stands for every metrics.json below it.

    Raises:
        DataError: A folder has no metrics.json, or a file is damaged.
    """
    runs = []
    for path in paths:
        files = sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"{path}: no {FILE_NAME} in this folder; score a run with --save-path to write one",
                code="missing-metrics",
            )
        runs += [(file, read_scores(file)) for file in files]
    names = _short_names([file for file, _ in runs])
    return [ComparedRun(name, scores, file) for name, (file, scores) in zip(names, runs, strict=True)]


def _short_names(files: Sequence[Path]) -> list[str]:
    """Return a short name for each file: its last folders, and its stem unless it is metrics.json."""
    parts = [
        path.parent.parts if path.name == FILE_NAME else (*path.parent.parts, path.stem)
        for path in (file.resolve() for file in files)
    ]
    return shortest_names(parts)


def compare(runs: Sequence[ComparedRun], baseline: str | None = None) -> list[Row]:
    """Return a row per score of each benchmark, with each run's paired difference to the baseline.

    `baseline` is a run's name or path, or a folder above the runs. A benchmark takes its first run as
    baseline if `baseline` is None or none of its runs matches.

    Raises:
        DataError: Two runs of one benchmark were scored on different questions.
        SettingsError: No run matches `baseline`.
    """
    chosen = [index for index, run in enumerate(runs) if baseline and _matches_name(run, baseline)]
    if baseline and not chosen:
        raise SettingsError(
            f"--baseline {baseline!r} is none of the runs: {', '.join(run.name for run in runs)}",
            code="unknown-baseline",
        )
    rows: list[Row] = []
    for benchmark in dict.fromkeys(run.scores.benchmark for run in runs):
        members = [index for index, run in enumerate(runs) if run.scores.benchmark == benchmark]
        base = next((index for index in chosen if index in members), members[0])
        rows += _compare(runs, members, base)
    return rows


def _matches_name(run: ComparedRun, wanted: str) -> bool:
    path = Path(wanted).resolve()
    return run.name == wanted or path == run.path.resolve() or path in run.path.resolve().parents


def _compare(runs: Sequence[ComparedRun], members: Sequence[int], base: int) -> Iterator[Row]:
    """Yield the rows of one benchmark; `members` are the indices of its runs."""
    before = runs[base].scores
    aligned = {index: align(runs[base], runs[index]) for index in members}
    keys = dict.fromkeys(
        (score.group, score.name)
        for index in members
        for score in runs[index].scores.scores
        if score.group not in DETAILS
    )
    for group, name in keys:
        found = tuple(find_score(run, group, name) if i in members else None for i, run in enumerate(runs))
        differences = tuple(
            paired_difference(before, aligned[i], group, name) if i in members and i != base else None
            for i in range(len(runs))
        )
        largest = max((score for score in found if score), key=lambda score: score.n)
        headline = group == "total" and name == before.headline
        yield Row(before.benchmark, group, name, largest.n, largest.count, found, differences, base, headline)


def find_score(run: ComparedRun, group: str, name: str) -> Score | None:
    """Return a score of a run, None if it has none of that name."""
    try:
        return run.scores.get(name, group)
    except KeyError:
        return None


def to_markdown(runs: Sequence[ComparedRun], rows: Sequence[Row], *, published: bool = False) -> str:
    """Format the rows as Markdown: a table per benchmark, quoted scores bold, clear differences with `*`."""
    blocks = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        shown = [index for index, run in enumerate(runs) if run.scores.benchmark == benchmark]
        own_rows = [row for row in rows if row.benchmark == benchmark]
        compared = [index for index in shown if any(row.differences[index] for row in own_rows)]
        header = ["question type", "n"]
        header += [cell for index in shown for cell in (runs[index].name, "95 % interval")]
        base = runs[own_rows[0].baseline].name
        header += [cell for index in compared for cell in (f"{runs[index].name} - {base}", "95 % interval")]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        lines += [_cells(runs, row, shown, compared) for row in own_rows]
        if published:
            width = len(header) - 3
            lines += [
                [f"published: {model}", "", figures[benchmark], *[""] * width]
                for model, figures in PUBLISHED.items()
                if benchmark in figures
            ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"### {benchmark}\n\n{table}\n{_footnotes([runs[index] for index in shown])}")
    return "\n".join(blocks)


def _cells(runs: Sequence[ComparedRun], row: Row, shown: Sequence[int], compared: Sequence[int]) -> list[str]:
    label = row.name if row.group in {"total", "type"} else f"{row.group}: {row.name}"
    cells = [f"**{label}**" if row.is_quoted else label, row.count]
    for index in shown:
        score = row.scores[index]
        if score is None:
            cells += [format_value(None), "-"]
        else:
            cells += [format_score(runs[index].scores, score), format_interval(score.low, score.high)]
    for index in compared:
        change = row.differences[index]
        if change is None:
            cells += ["-", "-"]
        else:
            cells += [f"{change.value:+.2f}{' *' if change.is_clear else ''}"]
            cells += [format_interval(change.low, change.high)]
    return cells


def _footnotes(runs: Sequence[ComparedRun]) -> str:
    lines = ["Bold: papers quote this number."]
    if any(score.is_partial for run in runs for score in run.scores.scores):
        lines.append(f"{PARTIAL}.")
    for run in runs:
        counts = ", ".join(f"{count} {name}" for name, count in run.scores.counts.items())
        lines += [f"**WARNING** {run.name}: {text}." for text in run.scores.warnings]
        lines.append(f"{run.name}: {counts}.")
        lines += [f"{run.name}: {note}." for note in run.scores.notes]
        lines += [f"{run.name}: judged by {run.scores.judge}."] if run.scores.judge else []
    if len(runs) > 1:
        lines.append(
            "`*`: the 95 % interval of the paired difference excludes 0; chance marks one row in twenty."
        )
    return "\n" + "\n\n".join(lines) + "\n"


def to_json(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """Format the rows as JSON: the runs, and for each row its scores and differences by run name."""
    names = [run.name for run in runs]
    rows_json = [
        {
            "benchmark": row.benchmark,
            "group": row.group,
            "name": row.name,
            "n": row.n,
            "headline": row.is_headline,
            "quoted": row.is_quoted,
            "scores": {
                name: {
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "n": score.n,
                    "of": score.of,
                }
                for name, score in zip(names, row.scores, strict=True)
                if score
            },
            "differences": {
                name: {**asdict(change), "excludes_zero": change.is_clear}
                for name, change in zip(names, row.differences, strict=True)
                if change
            },
        }
        for row in rows
    ]
    runs_json = [
        {"name": run.name, "benchmark": run.scores.benchmark, "model_id": run.scores.model_id,
         "judge": run.scores.judge,
         "counts": run.scores.counts, "notes": list(run.scores.notes),
         "warnings": list(run.scores.warnings)}
        for run in runs
    ]  # fmt: skip
    return json.dumps({"runs": runs_json, "rows": rows_json}, indent=2, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="llava report",
        description=__doc__.split("\n")[0],
        epilog="Other reports: `llava report results RUN...` writes a paper's table, `llava report compare"
        " A B` lists the questions that changed, `llava report badcases RUN [RUN]` those that went wrong, and"
        " `llava report training RUN...` draws the curves of training runs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS", help="metrics.json or a folder")
    parser.add_argument(
        "--baseline", help="the run others are compared with: its path or name (default: first)"
    )
    parser.add_argument("--format", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--out", type=Path, help="write here instead of to stdout")
    parser.add_argument("--published", action="store_true", help="add the papers' figures, labelled so")
    args = parser.parse_args()
    runs = read_runs(args.runs)
    require_distinct((args.out,), [run.path for run in runs])
    rows = compare(runs, args.baseline)
    text = to_json(runs, rows) if args.format == "json" else to_markdown(runs, rows, published=args.published)
    if args.out:
        with atomic_write(args.out) as stream:
            stream.write(text + "\n")
    else:
        sys.stdout.write(text + "\n")
