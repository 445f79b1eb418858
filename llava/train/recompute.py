"""How many of the language model's layers are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any


def recompute_first(model: Any, count: int) -> None:
    """Let gradient checkpointing, which is on, recompute the first `count` layers alone.

    The first ones, because what the others keep is gone by the time these are computed again.
    """
    for place, layer in enumerate(model.get_decoder().layers):
        layer.gradient_checkpointing = place < count
