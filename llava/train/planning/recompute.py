"""How many of the language model's layers are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

from llava.errors import SettingsError
from llava.model.recipe import Recipe
from llava.train.distributed import all_reduce_max
from llava.train.planning.footprint import Footprint
from llava.train.planning.memory import Batch, Sharing, layers_to_recompute


def layers_of(
    recipe: Recipe, args: Any, footprint: Footprint, batch: Batch, sharing: Sharing, room: float
) -> int:
    """The number that `--gradient_checkpointing` and `--checkpoint_layers` come to; every process must ask.

    Args:
        recipe: The shortcuts, settled.
        args: The flags.
        footprint: What the model takes.
        batch: What a device is given at a time, at its largest.
        sharing: What processes share.
        room: Bytes that this process may use on its device.

    Raises:
        SettingsError: The model has fewer layers than are to be recomputed.
    """
    wanted = recipe.checkpoint_layers
    if not args.activation_checkpointing:
        return 0
    if wanted == "all":
        return footprint.layers
    if wanted == "auto":
        # One number for all: where weights are in parts, all must compute a layer again together.
        return all_reduce_max(layers_to_recompute(footprint, batch.passed(0), sharing, room))[0]
    if int(wanted) > footprint.layers:
        raise SettingsError(f"--checkpoint_layers {wanted}: the model has {footprint.layers} layers")
    return int(wanted)


def recompute_first(model: Any, count: int) -> None:
    """Let gradient checkpointing, which is on, recompute the first `count` layers alone.

    The first ones, because what the others keep is gone by the time these are computed again.
    """
    for place, layer in enumerate(model.get_decoder().layers):
        layer.gradient_checkpointing = place < count
