"""How much goes through the model at a time, on which device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from llava.errors import SettingsError
from llava.infer.engine.load import Loaded

logger = logging.getLogger(__name__)

# On a CPU a few hundred positions keep the matrix products busy; more attend to each other for nothing.
_CPU_TOKENS = 512
_MOST_TOKENS = 16384
_LEAST_TOKENS = 512
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """The most positions, padding included, and the most prompts of one pass. One prompt always fits."""

    tokens: int
    rows: int

    @property
    def groups(self) -> int:
        """How many groups of prompts are planned together: more than one pass takes, yet not far ahead."""
        return max(min(self.tokens // 512, self.rows, 32), 8)

    def halved(self) -> Budget:
        """Half of it, after memory ran out.

        Raises:
            SettingsError: There is nothing left to halve.
        """
        if self.tokens <= 1 and self.rows <= 1:
            raise SettingsError(
                "out of memory with a single prompt at a time; free some, load in 4 or 8 bits, or take a "
                "device with more"
            )
        return Budget(max(self.tokens // 2, 1), max(min(self.rows, self.tokens) // 2, 1))


def measure_budget(loaded: Loaded, batch_size: int | None) -> Budget:
    """What the device has room for, and no more than `batch_size` prompts if that is given."""
    tokens = _CPU_TOKENS
    if loaded.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(loaded.device)
        tokens = int(_SHARE_OF_FREE * free / estimate_position_bytes(loaded.model))
        tokens = min(max(tokens, _LEAST_TOKENS), _MOST_TOKENS)
        logger.info(f"{free / 2**30:.1f} GiB free on {loaded.device}: up to {tokens} positions at a time")
    return Budget(tokens, batch_size or tokens)


def estimate_position_bytes(model: Any) -> int:
    """About what one position takes: keys and values of prefix and rest, and one layer's activations."""
    config = model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    cached = 2 * 2 * config.num_hidden_layers * heads
    activations = 8 * config.hidden_size + 4 * config.intermediate_size
    return int((cached + activations) * model.dtype.itemsize)
