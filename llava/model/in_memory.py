"""Try work that may not fit into a GPU's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

Result = TypeVar("Result")


def try_in_memory(work: Callable[[], Result]) -> Result | None:
    """Return what `work` returns, or None if memory ran out.

    By then the error is gone, and with it all tensors that its frames hold.
    """
    with suppress(torch.OutOfMemoryError):
        return work()
    return None
