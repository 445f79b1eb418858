"""Batches as the collator makes them for the golden model, and what a model learns from them."""

from __future__ import annotations

from typing import Any

import torch


def batch(*rows: tuple[int, int | None], learn: int = 12) -> dict[str, Any]:
    """Return a batch of rows: of so many ids, an image at that place or none; learned from `learn` on."""
    generator = torch.Generator().manual_seed(1)
    longest = max(length for length, _ in rows)
    ids = torch.randint(3, 2048, (len(rows), longest), generator=generator)
    mask = torch.tensor([[place < length for place in range(longest)] for length, _ in rows])
    images = torch.randn(len(rows), 3, 56, 56, generator=generator)
    for row, (_, place) in enumerate(rows):
        if place is None:
            images[row] = 0
        else:
            ids[row, place] = -200
    labels = ids.masked_fill((ids == -200) | ~mask, -100)
    labels[:, :learn] = -100
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "labels": labels,
        "attention_mask": mask,
        "images": images,
    }


def learned(model: Any, *passes: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the sum of the losses of some forward passes, and the gradients they leave."""
    model.zero_grad(set_to_none=True)
    losses = [model(**inputs).loss for inputs in passes]
    for loss in losses:
        loss.backward()
    named = [(name, each.grad) for name, each in model.named_parameters() if each.requires_grad]
    return sum(loss.item() for loss in losses), {
        name: gradient for name, gradient in named if gradient is not None
    }
