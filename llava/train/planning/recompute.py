"""Choose how many decoder layers recompute their activations in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from llava.errors import SettingsError
from llava.model.recipe import Recipe
from llava.train.distributed import all_reduce_max
from llava.train.planning.footprint import Footprint
from llava.train.planning.memory import Batch, Sharing, layers_to_recompute

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments


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


def recompute_first(model: PreTrainedModel, count: int) -> None:
    """Restrict gradient checkpointing, which must be on, to the first `count` layers.

    The backward pass reaches the first layers last, when the activations kept by the others are freed.
    """
    for index, layer in enumerate(model.get_decoder().layers):
        layer.gradient_checkpointing = index < count
