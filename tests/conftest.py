"""Shared fixtures: where golden outputs and real data lie, and a count of what their absence skipped."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.shared_data import golden_folder, realdata_folder
from support.warm_python import start_server

# Before anything imports torch: two workers with two threads each would fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell lets its background jobs ignore Ctrl-C; tests, and what they start, would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of training files lie in a folder of the test run's, not beside the shared test data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture
def golden() -> Path:
    """The folder of the original's outputs on tiny weights."""
    return golden_folder()


@pytest.fixture
def realdata() -> Path:
    """The folder of real questions, answers and photos."""
    return realdata_folder()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts an empty disk of so many KiB and returns its folder."""
    mounted: list[Path] = []

    def mount(size_kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def pytest_configure(config: pytest.Config) -> None:
    """Start one server of warm Pythons for all workers."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slow tests first, so that no worker is left with one while the others have ended.

    At first each worker gets an equal, contiguous part of the tests; its share of the slow ones leads it.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [
        item
        for worker in range(workers)
        for kind in (slow, quick)
        for item in kind[len(kind) * worker // workers : len(kind) * (worker + 1) // workers]
    ]


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of collections, of which training and loading ask for many."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests that were skipped for missing data; list them in the file LLAVA_TEST_SKIPPED names."""
    skipped = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if "of the shared test data" in str(report.longrepr)
    ]
    terminalreporter.write_line(f"skipped for missing test data: {len(skipped)}")
    if path := os.environ.get("LLAVA_TEST_SKIPPED"):
        Path(path).write_text("".join(f"{name}\n" for name in skipped), encoding="utf-8")
