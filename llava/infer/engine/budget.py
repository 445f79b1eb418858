"""Limit how many positions and prompts go into one forward pass."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llava.errors import SettingsError
from llava.infer.engine.load import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A few hundred positions keep a CPU busy; with more, attention within a group costs more than it saves.
_CPU_POSITIONS = 512
_MAX_POSITIONS = 16384
_MIN_POSITIONS = 512
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """The most positions, padding included, and the most prompts of one pass. One prompt always fits."""

    positions: int
    prompts: int

    @property
    def groups(self) -> int:
        """The most groups of a window: enough to fill a pass, few enough to keep their images in memory."""
        return max(min(self.positions // 512, self.prompts, 32), 8)

    def halved(self) -> Budget:
        """Return half of this budget, for use after memory ran out.

        Raises:
            SettingsError: The budget is a single prompt already.
        """
        if self.positions <= 1 and self.prompts <= 1:
            raise SettingsError(
                "out of memory with a single prompt at a time; free some memory, load in 4 or 8 bits, or use "
                "a device with more",
                code="out-of-memory",
            )
        return Budget(max(self.positions // 2, 1), max(min(self.prompts, self.positions) // 2, 1))


def measure_budget(loaded: Loaded, batch_size: int | None) -> Budget:
    """Return what fits into the device's free memory, with at most `batch_size` prompts if it is given."""
    positions = _CPU_POSITIONS
    if loaded.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(loaded.device)
        positions = int(_SHARE_OF_FREE * free / estimate_position_bytes(loaded.model))
        positions = min(max(positions, _MIN_POSITIONS), _MAX_POSITIONS)
        logger.info(f"{free / 2**30:.1f} GiB free on {loaded.device}: up to {positions} positions at a time")
    return Budget(positions, batch_size or positions)


def estimate_position_bytes(model: PreTrainedModel) -> int:
    """Estimate the memory of one position: keys and values (twice), and one layer's activations."""
    config = model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cached = 2 * 2 * config.num_hidden_layers * heads
    activations = 8 * config.hidden_size + 4 * config.intermediate_size
    return int((cached + activations) * model.dtype.itemsize)
