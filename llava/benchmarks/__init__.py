"""The benchmarks, one module each in `tasks/`: the file's name is the benchmark's, its `BENCHMARK` the value.

Text side only: questions and answers in, scores and submission files out; no torch, no models, no images.
To add a benchmark, add a file: `llava eval` and `llava benchmarks` find it.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from llava.benchmarks import tasks
from llava.benchmarks.base import Benchmark
from llava.benchmarks.evaluation import ModelEvaluation
from llava.errors import SettingsError


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def get(name: str) -> Benchmark:
    """Return the benchmark called `name`, or with that alias.

    Raises:
        SettingsError: There is none; the message lists those there are.
    """
    known = names()
    for candidate in [name] if name in known else known:
        benchmark: Benchmark = importlib.import_module(f"{tasks.__name__}.{candidate}").BENCHMARK
        if name in (benchmark.name, *benchmark.aliases):
            return benchmark
    raise SettingsError(f"no benchmark {name!r}; there are: {', '.join(known)}", code="unknown-benchmark")


def evaluation_of(
    name: str, split: str | None, eval_root: Path, model_name: str, limit: int | None = None
) -> ModelEvaluation:
    """Return the evaluation of one model on the benchmark called `name`, under `eval_root`.

    `split` is a split's name or its question file's without suffix; None is the usual split. `limit` is how
    many of its questions are asked; None is all. Whether the data is there is not looked at.

    Raises:
        SettingsError: There is no such benchmark or split.
    """
    benchmark = get(name)
    root = eval_root / benchmark.folder
    return ModelEvaluation(benchmark, root, benchmark.pick_split(split), model_name, limit)
