"""Group scored runs by model: a model has one run of each benchmark and split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava import benchmarks
from llava.benchmarks.base import Benchmark
from llava.errors import DataError, SettingsError
from llava.report.comparison import read_runs
from llava.report.pairing import ComparedRun
from llava.scoring.metrics import FILE_NAME

Task = tuple[str, str]
"""A benchmark and its split."""
ANSWERS = "answers"


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """A model and its runs."""

    name: str
    runs: dict[Task, ComparedRun] = field(default_factory=dict)


def read_models(words: Sequence[str]) -> list[ScoredModel]:
    """Read runs and group them by model, in order of appearance.

    Args:
        words: Each a metrics.json, or a folder that stands for all below it, as PATH or NAME=PATH. Without
            NAME a run is of the model that its folder is named after (`name_model`).

    Raises:
        DataError: A file is missing or damaged, or two files are of one model, benchmark and split.
    """
    found: dict[str, ScoredModel] = {}
    for word in words:
        given, path = _split_word(word)
        for run in read_runs([path]):
            name = given or name_model(run)
            model = found.setdefault(name, ScoredModel(name))
            task = task_of(run)
            if task in model.runs:
                raise DataError(
                    f"{model.runs[task].path} and {run.path} are both {task[0]} of the model {name!r}; name"
                    " one of them, or tell models apart: NAME=PATH",
                    code="two-runs",
                )
            model.runs[task] = replace(run, name=name)
    return list(found.values())


def _split_word(word: str) -> tuple[str, Path]:
    """Return the name and the path in NAME=PATH, in which both may have an equals sign."""
    for found in [] if Path(word).exists() else re.finditer("=", word):
        name, path = word[: found.start()], Path(word[found.end() :])
        if name and path.exists():
            return name, path
    return "", Path(word)


def name_model(run: ComparedRun) -> str:
    """Return the model's name: the last folder above the file that is not named after the benchmark.

    That is MODEL in seed_bench/answers/MODEL/metrics.json, as `llava eval` writes it, and in
    MODEL/seed/metrics.json.
    """
    path = run.path.resolve()
    parts = path.parent.parts if path.name == FILE_NAME else (*path.parent.parts, path.stem)
    if ANSWERS in parts[:-1]:
        return parts[-1]
    benchmark = find_benchmark(run.scores.benchmark)
    known = {run.scores.benchmark, *((benchmark.folder, *benchmark.aliases) if benchmark else ())}
    return next((part for part in reversed(parts[1:]) if part not in known), parts[-1])


def task_of(run: ComparedRun) -> Task:
    """Return the run's benchmark and split; a file that does not name its split is of the usual one."""
    benchmark = find_benchmark(run.scores.benchmark)
    usual = benchmark.splits[0] if benchmark else ""
    return run.scores.benchmark, run.scores.split or usual


def find_benchmark(name: str) -> Benchmark | None:
    """Return the benchmark called `name`, None if there is none here."""
    try:
        return benchmarks.get(name)
    except SettingsError:
        return None
