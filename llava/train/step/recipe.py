"""Resolve --recipe and the flag of each shortcut, dropping what this run cannot use.

`exact` computes a step as the original does. `fast` takes less time for the same samples and, up to rounding,
the same loss and gradients; dropout draws other random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

from llava.errors import SettingsError
from llava.model.fused import find_fusing_obstacle
from llava.model.recipe import Recipe

if TYPE_CHECKING:  # arguments imports this module
    from llava.train.arguments import TrainingArguments

T = TypeVar("T")

RECIPES = ("exact", "fast")
# Shortcuts that the model's forward pass must implement.
_IN_FORWARD = ("pack", "micro_batch_tokens", "sparse_loss", "skip_blank_images", "skip_unread_layers")
# Long enough to keep a GPU busy, short enough for a 7B model's activations to fit.
ROW_POSITIONS = 8192


def resolve_recipe(training: TrainingArguments, *, has_shortcuts: bool) -> Recipe:
    """Return the shortcuts that `--recipe` and the flags beside it select for this run.

    Args:
        training: The flags, checked.
        has_shortcuts: Whether the model's forward pass is this package's; others have no shortcuts.

    Raises:
        SettingsError: A flag asks for a shortcut that the model does not have.
    """
    if not has_shortcuts:
        named = [f"--{name}" for name in _IN_FORWARD if getattr(training, name)]
        if named:
            raise SettingsError(
                f"{', '.join(named)}: only this package's own model has this shortcut; remove the flag",
                code="no-such-shortcut",
            )
    is_fast = training.recipe == "fast"
    may_shorten = is_fast and has_shortcuts and training.n_gpu <= 1
    pack = _chosen(training.pack, may_shorten)
    layers = _chosen(training.checkpoint_layers, "auto" if is_fast else "all")
    return Recipe(
        pack=pack,
        micro_batch_tokens=_chosen(training.micro_batch_tokens, ROW_POSITIONS if pack and is_fast else 0),
        sparse_loss=_chosen(training.sparse_loss, may_shorten),
        skip_blank_images=_chosen(training.skip_blank_images, may_shorten and not shards_weights(training)),
        skip_unread_layers=_chosen(training.skip_unread_layers, is_fast and has_shortcuts),
        checkpoint_layers=_layers(layers),
    )


def recipe_problems(training: TrainingArguments) -> Iterator[str]:
    """Yield one message per contradiction among the flags about shortcuts."""
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
        yield "--skip_blank_images True under ZeRO-3 or FSDP: all ranks must run the same modules"
    if training.use_liger_kernel and (reason := find_fusing_obstacle()) is not None:
        yield f"--use_liger_kernel True: {reason}"
    several = [f"--{name} True" for name in ("pack", "sparse_loss") if getattr(training, name)]
    if several and training.n_gpu > 1:
        yield f"{' and '.join(several)}: one process sees {training.n_gpu} GPUs: start one for each"


def uses_zero3(training: TrainingArguments) -> bool:
    """Return whether DeepSpeed's ZeRO-3 shards the weights."""
    plugin = training.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def shards_weights(training: TrainingArguments) -> bool:
    """Return whether each rank holds a shard of the weights (ZeRO-3 or FSDP)."""
    return bool(training.fsdp) or uses_zero3(training)


def _layers(flag: str) -> int | Literal["all", "auto"]:
    return "all" if flag == "all" else "auto" if flag == "auto" else int(flag)


def _chosen(flag: T | None, default: T) -> T:
    return default if flag is None else flag
