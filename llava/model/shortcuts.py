"""What a training step may leave out without changing its loss and gradients; see `LlavaLlamaForCausalLM`."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """How the loss of some rows is computed; all off is the original's way.

    Attributes:
        pack: The rows behind one another in one row without padding, each attending to itself alone.
        sparse_loss: Logits only where the next label counts.
        skip_blank_images: No pass through the vision tower for the blank image of a row of text alone.
        supervised: () int64, how many labels count in the batch that these rows are of; None: in these rows.
    """

    pack: bool = False
    sparse_loss: bool = False
    skip_blank_images: bool = False
    supervised: torch.Tensor | None = None
