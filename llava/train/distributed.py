"""Collectives over the ranks of a run. Every rank must call them; with a single process they do nothing."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

T = TypeVar("T")


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Return the maximum of each value over all ranks. This is also a barrier."""
    if not _is_multi_process():
        return values
    shared = torch.tensor(values, dtype=torch.int64, device=PartialState().device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return tuple(shared.tolist())


def gather_objects(value: T) -> list[T]:
    """Return the value of every rank, in rank order."""
    if not _is_multi_process():
        return [value]
    values: list[T] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def destroy_process_group() -> None:
    """Destroy the process group. Leaving it to interpreter exit sometimes aborts a rank."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _is_multi_process() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
