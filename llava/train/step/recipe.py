"""Which shortcuts a run takes: by name all at once, each by its flag, and only where they hold.

`exact` computes a step as the original does. `fast` has the same samples in a step and, up to rounding, the
same loss and gradients, in less time; dropout draws other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from llava.errors import SettingsError
from llava.model.fused import find_fusing_obstacle

RECIPES = ("exact", "fast")
# Shortcuts that a model's forward must know of.
_IN_FORWARD = ("pack", "micro_batch_tokens", "sparse_loss", "skip_blank_images", "skip_unread_layers")
# Long enough for a GPU's products to be at full speed, short enough for a 7B model's activations to fit.
ROW_POSITIONS = 8192


@dataclass(frozen=True, slots=True)
class Recipe:
    """The shortcuts of a run, settled.

    Attributes:
        pack: The samples of a batch stand in rows without padding.
        micro_batch_tokens: Positions that such a row has at most, where its samples allow it; 0 for one row.
        sparse_loss: Logits only where the next label counts.
        skip_blank_images: No pass through the vision tower for samples of text alone.
        skip_unread_layers: The vision tower ends at the layer that is read.
        checkpoint_layers: How many of the language model's first layers are recomputed instead of kept.
    """

    pack: bool = False
    micro_batch_tokens: int = 0
    sparse_loss: bool = False
    skip_blank_images: bool = False
    skip_unread_layers: bool = False
    checkpoint_layers: int | Literal["all", "auto"] = "all"


def settle(training: Any, *, reads_images: bool) -> Recipe:
    """What `--recipe` and the flags beside it come to for this run.

    Args:
        training: The flags, checked.
        reads_images: Whether the model is one of ours: others know no shortcuts in their forward.

    Raises:
        SettingsError: A shortcut is asked for that the model does not know.
    """
    if not reads_images:
        named = [f"--{name}" for name in _IN_FORWARD if getattr(training, name)]
        if named:
            raise SettingsError(f"{', '.join(named)}: only a model with a vision tower can compute so")
    is_fast = training.recipe == "fast"
    may_shorten = is_fast and reads_images and training.n_gpu <= 1
    pack = _chosen(training.pack, may_shorten)
    layers = _chosen(training.checkpoint_layers, "auto" if is_fast else "all")
    return Recipe(
        pack=pack,
        micro_batch_tokens=_chosen(training.micro_batch_tokens, ROW_POSITIONS if pack and is_fast else 0),
        sparse_loss=_chosen(training.sparse_loss, may_shorten),
        skip_blank_images=_chosen(training.skip_blank_images, may_shorten and not shards_weights(training)),
        skip_unread_layers=_chosen(training.skip_unread_layers, is_fast and reads_images),
        checkpoint_layers=int(layers) if layers.isdecimal() else layers,
    )


def recipe_problems(training: Any) -> Iterator[str]:
    """What contradicts itself among the flags about shortcuts."""
    if training.recipe not in RECIPES:
        yield f"--recipe {training.recipe}: wanted {' or '.join(RECIPES)}"
    if training.micro_batch_tokens is not None and training.micro_batch_tokens < 0:
        yield f"--micro_batch_tokens {training.micro_batch_tokens}: wanted 0 or more"
    packs = _chosen(training.pack, training.recipe == "fast")
    if training.micro_batch_tokens and not packs:
        yield "--micro_batch_tokens splits packed rows: give --pack True, or leave it out"
    layers = training.checkpoint_layers
    if layers is not None and layers not in ("auto", "all") and not layers.isdecimal():
        yield f"--checkpoint_layers {layers}: wanted auto, all or a number of layers"
    elif layers is not None and not training.gradient_checkpointing:
        yield f"--checkpoint_layers {layers} without --gradient_checkpointing True: nothing is recomputed"
    if training.skip_blank_images and shards_weights(training):
        yield "--skip_blank_images True with weights in parts (ZeRO-3, FSDP): all must run the same modules"
    if training.use_liger_kernel and (reason := find_fusing_obstacle()) is not None:
        yield f"--use_liger_kernel True: {reason}"
    several = [f"--{name} True" for name in ("pack", "sparse_loss") if getattr(training, name)]
    if several and training.n_gpu > 1:
        yield f"{' and '.join(several)}: one process sees {training.n_gpu} GPUs: start one for each"


def shards_weights(training: Any) -> bool:
    """Whether each process holds a part of the weights, so that all must run the same modules."""
    plugin = training.deepspeed_plugin
    return bool(training.fsdp) or (plugin is not None and plugin.zero_stage == 3)


def _chosen(flag: Any, otherwise: Any) -> Any:
    return otherwise if flag is None else flag
