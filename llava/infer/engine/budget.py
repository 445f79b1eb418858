"""Limit how many positions a pass and the cache have, and halve the limits when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from llava.errors import SettingsError
from llava.infer.engine.load import Loaded
from llava.model.in_memory import Result, try_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A few hundred positions keep a CPU busy, so it reads one image's prefix in a pass.
_CPU_POSITIONS = 512
# A step of decoding reads all weights, for one prompt as for many. With 32 that is little beside the cache.
_CPU_CACHED = 32 * 1024
_MAX_POSITIONS = 16384
_MIN_POSITIONS = 512
_SHARE_OF_FREE = 0.5


@dataclass(slots=True)
class Budget:
    """What may be in memory at a time. One prompt always fits.

    Attributes:
        positions: The most positions of a pass.
        cached: The most positions in the cache, unused ones included.
        prompts: The most prompts in progress.
        patches: The positions of an image.
    """

    positions: int
    cached: int
    prompts: int
    patches: int = 1

    @property
    def images(self) -> int:
        """The most images that are encoded at the same time."""
        return max(min(self.positions // self.patches, self.prompts), 1)

    @property
    def groups(self) -> int:
        """The most groups of a window: 8 or more by full batches of images, 32 to keep these in memory."""
        return min(math.ceil(8 / self.images) * self.images, 32)

    def halve(self) -> None:
        """Halve all limits and release what memory PyTorch keeps, after memory ran out.

        Raises:
            SettingsError: The budget is a single prompt already.
        """
        if max(self.positions, self.prompts) <= 1:
            raise _nothing_left()
        self.prompts = max(min(self.prompts, self.positions) // 2, 1)
        self.positions, self.cached = max(self.positions // 2, 1), max(self.cached // 2, 1)
        logger.info(f"out of memory: from here on {self.positions} positions at a time")
        torch.cuda.empty_cache()


def try_alone(work: Callable[[], Result], *, may_repeat: bool = True) -> Result:
    """Return what `work` returns, for a single prompt.

    Args:
        work: What needs memory.
        may_repeat: Whether it may be called again, after all that PyTorch kept was released.

    Raises:
        SettingsError: Memory ran out.
    """
    result = try_in_memory(work)
    if result is None and may_repeat:
        torch.cuda.empty_cache()
        result = try_in_memory(work)
    if result is None:
        raise _nothing_left()
    return result


def _nothing_left() -> SettingsError:
    return SettingsError(
        "out of memory with a single prompt at a time; free some memory, load in 4 or 8 bits, or use "
        "a device with more",
        code="out-of-memory",
    )


def measure_budget(loaded: Loaded, batch_size: int | None) -> Budget:
    """Return what fits into the device's free memory, with at most `batch_size` prompts if it is given."""
    cached_bytes, pass_bytes = estimate_position_bytes(loaded.model)
    if loaded.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(loaded.device)
        room = _SHARE_OF_FREE * free
        positions = min(max(int(room / (cached_bytes + pass_bytes)), _MIN_POSITIONS), _MAX_POSITIONS)
        cached = max(int((room - positions * pass_bytes) / cached_bytes), positions)
        logger.info(f"{free / 2**30:.1f} GiB free on {loaded.device}: up to {positions} positions at a time")
    else:
        room = _SHARE_OF_FREE * psutil.virtual_memory().available
        positions, cached = _CPU_POSITIONS, min(_CPU_CACHED, int(room / cached_bytes))
    return Budget(positions, cached, batch_size or positions, loaded.patches or 1)


def estimate_position_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """Estimate the memory of a position in the cache, and of one in a pass: one layer's activations."""
    config, size = model.config, model.dtype.itemsize
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cached = 2 * config.num_hidden_layers * heads
    return cached * size, (8 * config.hidden_size + 4 * config.intermediate_size) * size
