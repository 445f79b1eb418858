"""DeepSpeed's own files in a checkpoint: a full disk holds up no process, and nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from llava.train.checkpointing.checkpoints import Checkpoints
from llava.train.checkpointing.resume import explain_load_errors


@contextmanager
def patch_deepspeed_io(checkpoints: Checkpoints) -> Iterator[None]:
    """A block in which DeepSpeed's processes note errors of writing and read tensors only."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    plain_save, plain_load = TorchCheckpointEngine.save, TorchCheckpointEngine.load
    plain_checkpoint = DeepSpeedEngine.save_checkpoint

    def save(self: Any, state_dict: Any, path: str) -> None:
        # Its processes wait for each other after writing, so all must get there.
        with checkpoints.record_write_errors():
            plain_save(self, _numbered(state_dict), path)

    @wraps(plain_checkpoint)  # transformers looks at its parameters
    def save_checkpoint(self: Any, *settings: Any, **more: Any) -> Any:
        try:
            return plain_checkpoint(self, *settings, **more)
        except OSError:
            # One of the small files that the first process writes last; the others wait for it behind them.
            distributed.barrier()
            raise

    def load(self: Any, path: str, map_location: Any = None) -> Any:
        with explain_load_errors(str(Path(path).parents[1])), torch.serialization.safe_globals(_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)

    TorchCheckpointEngine.save, TorchCheckpointEngine.load = save, load
    DeepSpeedEngine.save_checkpoint = save_checkpoint
    try:
        yield
    finally:
        TorchCheckpointEngine.save, TorchCheckpointEngine.load = plain_save, plain_load
        DeepSpeedEngine.save_checkpoint = plain_checkpoint


def _numbered(value: Any) -> Any:
    """With numbers for members of enumerations, which Python before 3.11.4 stores as a call of `getattr`."""
    if type(value) is dict:
        return {key: _numbered(each) for key, each in value.items()}
    if type(value) is list:
        return [_numbered(each) for each in value]
    return int(value) if isinstance(value, Enum) and isinstance(value, int) else value


def _classes() -> list[Any]:
    """What DeepSpeed stores besides tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
