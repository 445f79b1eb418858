"""Choose how many decoder layers recompute their activations in the backward pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from llava.errors import SettingsError
from llava.model.recipe import Recipe
from llava.train.distributed import all_reduce_max
from llava.train.planning.footprint import Footprint
from llava.train.planning.memory import Batch, Sharing, layers_to_recompute

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments

# Positions of a row, from the most where the recipe sets no limit, to the fewest that are tried.
_LONGEST_ROW, _SHORTEST_ROW = 16384, 1024


def choose_recomputed_layers(
    recipe: Recipe, args: TrainingArguments, footprint: Footprint, batch: Batch, sharing: Sharing, room: float
) -> int:
    """Return how many layers `--gradient_checkpointing` and `--checkpoint_layers` ask to recompute.

    Every rank must call this.

    Args:
        recipe: The resolved recipe.
        args: The training flags.
        footprint: Memory use of the model.
        batch: The largest micro-batch of a device.
        sharing: How the ranks share weights and optimizer state.
        room: Bytes that this rank may use on its device.

    Raises:
        SettingsError: More layers are to be recomputed than the model has.
    """
    wanted = recipe.checkpoint_layers
    if not args.activation_checkpointing:
        return 0
    if wanted == "all":
        return footprint.layers
    if wanted == "auto":
        # The same number on all ranks: with sharded weights, all must recompute a layer together.
        return all_reduce_max(layers_to_recompute(footprint, batch.passed(0), sharing, room))[0]
    if int(wanted) > footprint.layers:
        raise SettingsError(
            f"--checkpoint_layers {wanted}: the model has {footprint.layers} layers", code="out-of-range"
        )
    return int(wanted)


def take_less_memory(recipe: Recipe, layers: int, *, can_recompute: bool) -> Recipe | None:
    """Return the next recipe that takes less memory for the same losses; None if there is none.

    Half of the layers that are not recomputed yet are recomputed, then rows are half as long.

    Args:
        recipe: The present recipe.
        layers: Number of decoder layers.
        can_recompute: Whether layers may be recomputed.
    """
    recomputed = recipe.checkpoint_layers if isinstance(recipe.checkpoint_layers, int) else layers
    if can_recompute and recomputed < layers:
        return replace(recipe, checkpoint_layers=recomputed + math.ceil((layers - recomputed) / 2))
    row = recipe.micro_batch_tokens or _LONGEST_ROW
    if recipe.pack and row > _SHORTEST_ROW:
        return replace(recipe, micro_batch_tokens=max(row // 2, _SHORTEST_ROW))
    return None


def recompute_first(model: PreTrainedModel, count: int) -> None:
    """Restrict gradient checkpointing, which must be on, to the first `count` layers.

    The backward pass reaches the first layers last, when the activations kept by the others are freed.
    """
    for index, layer in enumerate(model.get_decoder().layers):
        layer.gradient_checkpointing = index < count
