"""Have accelerate share out a model with FSDP2, on GPUs and on CPU processes alike."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from llava.errors import SettingsError
from llava.schema import JsonObject


def choose_fsdp(accelerator: Accelerator, plugin_args: JsonObject | None) -> None:
    """Make sure that accelerate shards the model when it prepares it, and in which precision it computes.

    accelerate chooses FSDP only for processes with GPUs or the like, and leaves CPU processes to DDP. What it
    does once FSDP is chosen is the same on both.

    Args:
        accelerator: A new accelerator, which has not prepared a model.
        plugin_args: What transformers makes of --fsdp and --fsdp_config; None without them.

    Raises:
        SettingsError: FSDP is asked for outside the flags, or accelerate chose something else.
    """
    state = accelerator.state
    if plugin_args is None:
        raise SettingsError(
            "ACCELERATE_USE_FSDP is set, as by `accelerate launch --use_fsdp`: ask for FSDP by --fsdp True, "
            "and start the processes with torchrun",
            code="fsdp-without-flag",
        )
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_args)
        state.distributed_type = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        chosen = state.distributed_type.value
        raise SettingsError(
            f"--fsdp: accelerate chose {chosen} and not FSDP2; leave --fsdp out", code="no-fsdp"
        )
    # accelerate's own policy would also sum gradients, and round the loss, in 16 bit.
    computes_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    policy = MixedPrecisionPolicy(param_dtype=computes_in, reduce_dtype=torch.float32)
    state.fsdp_plugin.mixed_precision_policy = policy


def reshard(model: nn.Module) -> None:
    """Give up the whole weights that a forward pass without a backward pass leaves.

    The optimizer's parameters, by which its state is saved, are the shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
