"""Parameters that only `bash scripts/test.sh all` runs."""

from __future__ import annotations

import pytest
from _pytest.mark.structures import ParameterSet


def exhaustive(*values: object) -> ParameterSet:
    """Return parameters that repeat on another path what a neighbouring test shows."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
