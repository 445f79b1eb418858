"""What the processes of one run agree on: each must call these. Alone, one agrees with itself."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from torch import distributed


def largest(*values: int) -> tuple[int, ...]:
    """Each value's largest over all processes. Returns when all have come here."""
    if not _several():
        return values
    shared = torch.tensor(values, dtype=torch.int64, device=PartialState().device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return tuple(shared.tolist())


def of_each(value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks."""
    if not _several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def part() -> None:
    """End the connection when all have come here: left to the exit, it aborts one now and then."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
