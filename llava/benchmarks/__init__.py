"""The benchmarks, one module each in `tasks/`: the file's name is the benchmark's, its `BENCHMARK` the value.

Text side only: questions and answers in, scores and submission files out; no torch, no models, no images.
Adding one is adding a file; `names()` finds it, `python -m llava.benchmarks` runs it, the tests test it.
"""

from __future__ import annotations

import importlib
import pkgutil

from llava.benchmarks import tasks
from llava.benchmarks.base import Benchmark
from llava.errors import SettingsError


def names() -> list[str]:
    """The benchmarks there are, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def get(name: str) -> Benchmark:
    """The benchmark called `name` (or one of its aliases).

    Raises:
        SettingsError: There is none; the message lists those there are.
    """
    known = names()
    for candidate in [name] if name in known else known:
        benchmark: Benchmark = importlib.import_module(f"{tasks.__name__}.{candidate}").BENCHMARK
        if name in (benchmark.name, *benchmark.aliases):
            return benchmark
    raise SettingsError(f"no benchmark {name!r}; there are: {', '.join(known)}")
