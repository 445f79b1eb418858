"""Split a batch into the micro-batches of its forward and backward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from llava.data.collate import Batch
from llava.data.pack import assign_rows, count_positions, count_rows, select_samples
from llava.model.recipe import Recipe
from llava.train.distributed import all_reduce_max


def rows_of(
    inputs: dict[str, torch.Tensor],
    recipe: Recipe,
    *,
    supervised: torch.Tensor,
    image_positions: int,
    max_length: int,
) -> list[Batch]:
    """Split a batch into the keyword arguments of its forward passes, whose losses sum to the batch's loss.

    Every rank makes as many passes as the rank that needs most: some backends communicate in each pass.

    Args:
        inputs: A collated batch.
        recipe: The shortcuts to take.
        supervised: () int64, number of supervised positions in the batch.
        image_positions: Positions that one image takes.
        max_length: Samples are truncated to this many positions.
    """
    if not recipe.changes_forward:
        return [inputs]
    by_recipe = {"recipe": recipe, "supervised": supervised}
    if not recipe.pack:
        return [{**inputs, **by_recipe}]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = count_positions(ids, mask, image_positions=image_positions, max_length=max_length).tolist()
    (count,) = all_reduce_max(count_rows(lengths, recipe.micro_batch_tokens))
    return [{**select_samples(inputs, indices), **by_recipe} for indices in assign_rows(lengths, count)]


@contextmanager
def accumulate_gradients(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Add up gradients in a `with` block: no optimizer step, and nothing is reduced across ranks.

    FSDP still reduces them: otherwise each rank would need memory for the gradients of the whole model. Use
    it for every micro-batch of a step but the last.
    """
    state = accelerator.gradient_state
    before = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        with nullcontext() if accelerator.is_fsdp2 else accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(before)
