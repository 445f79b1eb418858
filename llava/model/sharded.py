"""Read and write parameters that DeepSpeed's ZeRO-3 or FSDP has split over the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def gather_parameters(
    parameters: Iterable[torch.nn.Parameter], *, to_change: bool = False
) -> AbstractContextManager[None]:
    """Gather the parameters that ZeRO-3 has split while a `with` block runs. Every rank must enter it.

    Args:
        parameters: Any parameters; those that are not split stay as they are.
        to_change: Whether the block writes to them. Every rank must then write the same values.
    """
    split = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]  # DeepSpeed sets ds_id
    if not split:
        return nullcontext()
    from deepspeed import zero  # slow, and installed only for training

    gathered: AbstractContextManager[None] = zero.GatheredParameters(
        split, modifier_rank=0 if to_change else None
    )
    return gathered


def gather_copy(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Copy one parameter to the CPU. Under ZeRO-3 and FSDP every rank must call this."""
    if _is_fsdp_shard(shard := parameter.detach()):
        return shard.full_tensor().cpu().clone()
    with gather_parameters([parameter]):
        return parameter.detach().cpu().clone()


def copy_into(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    """Copy a whole tensor into a parameter. Under FSDP every rank must call this with the same tensor."""
    if _is_fsdp_shard(parameter):
        from torch.distributed.tensor import distribute_tensor  # slow, and not in every build of torch

        tensor = distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(tensor)


def _is_fsdp_shard(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "full_tensor")
