"""A batch as the forward and backward passes it is computed in: by samples or, packed, by rows of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from llava.data.pack import assign_rows, count_positions, count_rows, select_samples
from llava.model.recipe import Recipe
from llava.train.distributed import all_reduce_max


def rows_of(
    inputs: dict[str, Any],
    recipe: Recipe,
    *,
    supervised: torch.Tensor,
    image_positions: int,
    max_length: int,
) -> list[dict[str, Any]]:
    """The keyword arguments of one forward pass each, whose losses sum up to the batch's.

    Every process makes as many as the one that needs most: some backends talk to each other in each pass.

    Args:
        inputs: A collated batch.
        recipe: The shortcuts to take.
        supervised: () int64, how many labels of the batch count.
        image_positions: Positions one image takes.
        max_length: Positions after which a sample is cut.
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
def deferred(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Backward passes in here add to gradients that are not final: no step, no exchange that can wait."""
    state = accelerator.gradient_state
    before = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(before)
