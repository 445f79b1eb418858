"""Where golden outputs and real data lie. What may not be shipped is skipped without LLAVA_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHIPPED = Path(__file__).resolve().parents[1] / "data"


def golden_folder() -> Path:
    """The golden outputs under LLAVA_TEST_DATA, or the ones that are shipped with the tests."""
    given = Path(os.environ.get("LLAVA_TEST_DATA", ""), "golden")
    return given if "LLAVA_TEST_DATA" in os.environ and given.is_dir() else SHIPPED / "golden"


def realdata_folder() -> Path:
    """The folder of real questions, answers and photos; the test is skipped without it."""
    return require_shared(Path(os.environ.get("LLAVA_TEST_DATA", "not-set"), "realdata"))


def require_shared(path: Path) -> Path:
    """Return `path`, or skip the test if it is not there."""
    if not path.exists():
        pytest.skip(f"needs {path.name} of the shared test data: set LLAVA_TEST_DATA to its folder")
    return path
