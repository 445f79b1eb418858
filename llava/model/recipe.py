"""Which shortcuts a training step takes; see `llava.train.step.recipe` for the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Recipe:
    """The shortcuts of a run. With all of them off, a step is computed as the original computes it.

    None of them changes the loss or the gradients by more than rounding.

    Attributes:
        pack: Put the samples of a batch into rows without padding, each sample attending only to itself.
        micro_batch_tokens: The most positions of such a row, where its samples allow it; 0 for one row.
        sparse_loss: Compute logits only at positions whose next label is supervised.
        skip_blank_images: Do not encode the blank images of text-only samples.
        skip_unread_layers: End the vision tower at the layer whose output is used.
        checkpoint_layers: How many of the language model's first layers recompute their activations.
    """

    pack: bool = False
    micro_batch_tokens: int = 0
    sparse_loss: bool = False
    skip_blank_images: bool = False
    skip_unread_layers: bool = False
    checkpoint_layers: int | Literal["all", "auto"] = "all"

    @property
    def changes_forward(self) -> bool:
        """Whether the model's forward pass must know of this recipe."""
        return self.pack or self.sparse_loss or self.skip_blank_images
