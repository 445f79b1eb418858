"""DeepSpeed's own files in a checkpoint: a full disk blocks no rank, and loading them runs no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from llava.train.checkpointing.checkpoints import Checkpoints
from llava.train.checkpointing.resume import explain_load_errors

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


@contextmanager
def patch_deepspeed_io(checkpoints: Checkpoints) -> Iterator[None]:
    """Patch DeepSpeed for the length of the block: write errors are recorded, and only tensors are read.

    It replaces TorchCheckpointEngine.save and .load and DeepSpeedEngine.save_checkpoint.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    plain_save, plain_load = TorchCheckpointEngine.save, TorchCheckpointEngine.load
    plain_checkpoint = DeepSpeedEngine.save_checkpoint

    def save(self: TorchCheckpointEngine, state_dict: object, path: str) -> None:
        # DeepSpeed has a barrier after this, which every rank must reach.
        with checkpoints.record_write_errors():
            plain_save(self, _replace_enums(state_dict), path)

    @wraps(plain_checkpoint)  # transformers inspects its parameters
    def save_checkpoint(self: DeepSpeedEngine, *settings: object, **more: object) -> object:
        try:
            return plain_checkpoint(self, *settings, **more)
        except OSError:
            # Rank 0 failed to write one of the last small files; the other ranks wait at a barrier.
            distributed.barrier()
            raise

    def load(self: TorchCheckpointEngine, path: str, map_location: MAP_LOCATION = None) -> object:
        with (
            explain_load_errors(str(Path(path).parents[1])),
            torch.serialization.safe_globals(_stored_classes()),
        ):
            return torch.load(path, map_location=map_location, weights_only=True)

    TorchCheckpointEngine.save, TorchCheckpointEngine.load = save, load
    DeepSpeedEngine.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        TorchCheckpointEngine.save, TorchCheckpointEngine.load = plain_save, plain_load
        DeepSpeedEngine.save_checkpoint = plain_checkpoint


def _replace_enums(value: object) -> object:
    """Replace enum members by integers: Python before 3.11.4 pickles them as a call of `getattr`."""
    if type(value) is dict:
        return {key: _replace_enums(item) for key, item in value.items()}
    if type(value) is list:
        return [_replace_enums(item) for item in value]
    return int(value) if isinstance(value, Enum) and isinstance(value, int) else value


def _stored_classes() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """Return the classes and functions that DeepSpeed pickles besides tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
