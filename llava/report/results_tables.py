"""The tables of `llava report results`: models by benchmarks, and for each benchmark types by models.

Differences are to the baseline, paired by question. Their p-values are corrected by Holm's method: once over
all models and numbers of the main table, once over all models and types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from llava.errors import DataError, SettingsError
from llava.report.comparison import find_score
from llava.report.differences import Difference, paired_difference, paired_p
from llava.report.models import ScoredModel, Task, find_benchmark
from llava.report.pairing import ComparedRun, align
from llava.schema import Score, Scores
from llava.scoring.metrics import format_interval, format_value
from llava.scoring.paired_tests import holm
from llava.scoring.published import PUBLISHED

LEVEL = 0.05
DASH = "-"
PARTIAL_MARK = "\u2020"
WARNING_MARK = "!"
PUBLISHED_NOTE = (
    "published: figures of the papers, as printed; not measured here, and without interval or test."
)


@dataclass(frozen=True, slots=True)
class ResultCell:
    """One number of one model.

    Attributes:
        score: The score, None where there is none.
        has_warnings: Whether the scores may be meaningless.
        published: A published figure instead, as its source prints it.
        difference: The difference to the baseline.
        p: The p-value of the difference.
        adjusted: The same after Holm's correction.
    """

    score: Score | None = None
    has_warnings: bool = False
    published: str = ""
    difference: Difference | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.adjusted is not None and self.adjusted < LEVEL

    @property
    def marks(self) -> str:
        """The marks of a partial score, and of one that a warning is about."""
        if self.score is None or self.score.value is None:
            return ""
        return (PARTIAL_MARK if self.score.is_partial else "") + (WARNING_MARK if self.has_warnings else "")

    @property
    def lines(self) -> list[str]:
        """The text of the cell: the value, its interval, the difference, its corrected p-value."""
        if self.score is None:
            return [self.published or DASH]
        score, change = self.score, self.difference
        lines = [format_value(score.value) + self.marks]
        if score.low is not None:
            lines.append(format_interval(score.low, score.high))
        if change is not None:
            bounds = "" if change.low is None else f" {format_interval(change.low, change.high)}"
            lines.append(f"{change.value:+.2f}{bounds}{' *' if self.is_significant else ''}")
        if self.adjusted is not None:
            lines.append(f"p = {self.adjusted:.3f}" if self.adjusted >= 0.001 else "p < 0.001")
        return lines


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A row of a table: a model, a published model or a question type."""

    label: str
    cells: tuple[ResultCell, ...]
    is_published: bool = False


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table. `name` can be part of a file's name."""

    name: str
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All tables over some models, and the notes that belong to them."""

    models: tuple[str, ...]
    baseline: str
    main: ResultTable
    types: tuple[ResultTable, ...]
    notes: tuple[str, ...]

    @property
    def tables(self) -> tuple[ResultTable, ...]:
        """All tables, the main one first."""
        return self.main, *self.types


def build_results(
    models: Sequence[ScoredModel], baseline: str | None = None, *, published: bool = False
) -> Results:
    """Return the tables over `models`.

    Args:
        models: The models.
        baseline: The name of the model that the others are compared with; by default the first.
        published: Add rows of published figures.

    Raises:
        SettingsError: No model is called `baseline`.
    """
    names = tuple(model.name for model in models)
    if baseline is not None and baseline not in names:
        raise SettingsError(
            f"--baseline {baseline!r} is none of the models: {', '.join(names)}", code="unknown-baseline"
        )
    base = models[0 if baseline is None else names.index(baseline)]
    compared = _Comparison(base)
    tasks = list(dict.fromkeys(task for model in models for task in model.runs))
    keys = [(task, name) for task in tasks for name in _quoted(_runs(models, task))]
    several = {task for task in tasks if len(_quoted(_runs(models, task))) > 1}
    columns = tuple(task_title(task) + (f" {name}" if task in several else "") for task, name in keys)
    rows = [
        ResultRow(model.name, tuple(compared.cell(model, task, "total", name) for task, name in keys))
        for model in models
    ]
    (main,) = _correct([ResultTable("main", "Main results", "model", columns, tuple(rows))])
    if published:
        main = replace(main, rows=(*main.rows, *_published_rows(models, keys)))
    types = []
    for task in tasks:
        scored = [model for model in models if task in model.runs]
        kinds = [
            ResultRow(kind, tuple(compared.cell(model, task, "type", kind) for model in scored))
            for kind in _types(_runs(models, task))
        ]
        if kinds:
            name, columns = "-".join(filter(None, task)), tuple(model.name for model in scored)
            types.append(ResultTable(name, task_title(task), "question type", columns, tuple(kinds)))
    notes = [*_explain(base.name), *compared.refusals.values(), *_run_notes(models)]
    notes += [PUBLISHED_NOTE] if published else []
    return Results(names, base.name, main, tuple(_correct(types)), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Compares models with the baseline; `refusals` says of which runs that is not possible, and why."""

    base: ScoredModel
    aligned: dict[tuple[str, Task], Scores | None] = field(default_factory=dict)
    refusals: dict[tuple[str, Task], str] = field(default_factory=dict)

    def cell(self, model: ScoredModel, task: Task, group: str, name: str) -> ResultCell:
        run = model.runs.get(task)
        score = find_score(run, group, name) if run else None
        if run is None or score is None:
            return ResultCell()
        cell = ResultCell(score, bool(run.scores.warnings))
        before, after = self.base.runs.get(task), self._align(model, task)
        if before is None or after is None:
            return cell
        return replace(
            cell,
            difference=paired_difference(before.scores, after, group, name),
            p=paired_p(before.scores, after, group, name),
        )

    def _align(self, model: ScoredModel, task: Task) -> Scores | None:
        """Return the model's scores in the order of the baseline's questions, None if they do not compare."""
        key = (model.name, task)
        if key not in self.aligned:
            self.aligned[key] = None
            if model is not self.base and task in self.base.runs:
                try:
                    self.aligned[key] = align(self.base.runs[task], model.runs[task])
                except DataError as error:
                    self.refusals[key] = f"No difference: {error}."
        return self.aligned[key]


def _correct(tables: Sequence[ResultTable]) -> list[ResultTable]:
    """Return the tables with p-values that are corrected for all tests in them."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    adjusted = iter(holm([cell.p for cell in cells if cell.p is not None]))

    def correct_row(row: ResultRow) -> ResultRow:
        cells = (cell if cell.p is None else replace(cell, adjusted=next(adjusted)) for cell in row.cells)
        return replace(row, cells=tuple(cells))

    return [replace(table, rows=tuple(map(correct_row, table.rows))) for table in tables]


def task_title(task: Task) -> str:
    """Return what papers call the benchmark, with its split if that is not the usual one."""
    name, split = task
    benchmark = find_benchmark(name)
    if benchmark is None:
        return f"{name} {split}".strip()
    return benchmark.title if split == benchmark.splits[0] else f"{benchmark.title} {split}"


def _runs(models: Sequence[ScoredModel], task: Task) -> list[ComparedRun]:
    return [model.runs[task] for model in models if task in model.runs]


def _quoted(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of the total scores that papers quote, else the headline's."""
    totals = [score for run in runs for score in run.scores.scores if score.group == "total"]
    return list(dict.fromkeys(score.name for score in totals if score.quoted)) or [runs[0].scores.headline]


def _types(runs: Sequence[ComparedRun]) -> list[str]:
    scores = (score for run in runs for score in run.scores.scores if score.group == "type")
    return list(dict.fromkeys(score.name for score in scores))


def _published_rows(models: Sequence[ScoredModel], keys: Sequence[tuple[Task, str]]) -> Iterator[ResultRow]:
    """Yield a row for each published model that has a figure; figures are of the benchmarks' usual splits."""
    names = []
    for task, name in keys:
        benchmark, run = find_benchmark(task[0]), _runs(models, task)[0]
        is_usual = benchmark is None or task[1] == benchmark.splits[0]
        key = task[0] if name == run.scores.headline else f"{task[0]}/{name}"
        names.append(key if is_usual else "")
    for model, figures in PUBLISHED.items():
        cells = tuple(ResultCell(published=figures.get(name, "")) for name in names)
        if any(cell.published for cell in cells):
            yield ResultRow(model, cells, is_published=True)


def _explain(baseline: str) -> list[str]:
    return [
        f"Below each score: its 95 % interval; the difference to the baseline, {baseline}, with its paired"
        " 95 % interval; the difference's p-value.",
        "p: McNemar's exact test, or a paired randomization test where scores are not just right or wrong;"
        " corrected by Holm's method, once over all differences of the main table and once over all by type.",
        f"*: p < {LEVEL} after the correction. {DASH}: not scored.",
    ]


def _run_notes(models: Sequence[ScoredModel]) -> Iterator[str]:
    for model in models:
        for task, run in model.runs.items():
            where = f"{task_title(task)}, {model.name}"
            if partial := [score for score in run.scores.scores if score.is_partial]:
                largest = max(partial, key=lambda score: score.of or 0)
                yield f"{PARTIAL_MARK} partial: {where}: {largest.count} questions."
            yield from (f"{WARNING_MARK} WARNING: {where}: {text}." for text in run.scores.warnings)
            if run.scores.judge:
                yield f"{where}: judged by {run.scores.judge}."
            yield from (f"{where}: {note}." for note in run.scores.notes)
