"""Samples to a batch: padded on the right to the longest, cut at the model's length, images stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.constants import IGNORE_INDEX
from llava.errors import DataError

NOTES = "notes"
Note = tuple[Any, str | None, str | None]
"""A sample's id, why it teaches nothing, and why it should end the run."""


@dataclass
class DataCollatorForSupervisedDataset:
    """Makes the keyword arguments of the model's forward from a list of samples.

    The mask covers what was padded, not what equals the padding id: an `<unk>` inside a text is attended to
    (the original masks it out, for LLaMA pads with `<unk>`).

    Attributes:
        tokenizer: Its `pad_token_id` fills, its `model_max_length` cuts.
        with_notes: Add each sample's (id, problem, refused) under `notes`; our trainer takes them out.
    """

    tokenizer: Any
    with_notes: bool = False

    def __call__(self, instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels` and `attention_mask` of shape (B, L), and `images` if the samples have them.

        Images of one shape become one tensor (B, 3, H, W), others a list.

        Raises:
            DataError: Some samples have an image tensor and some have none.
        """
        longest = self.tokenizer.model_max_length
        ids = [instance["input_ids"][:longest] for instance in instances]
        labels = [instance["labels"][:longest] for instance in instances]
        lengths = torch.tensor([len(row) for row in ids])
        batch: dict[str, Any] = {
            "input_ids": _pad(ids, self.tokenizer.pad_token_id),
            "labels": _pad(labels, IGNORE_INDEX),
            "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
        }
        images = [instance["image"] for instance in instances if "image" in instance]
        if images:
            if len(images) != len(instances):
                raise DataError(f"{len(images)} of {len(instances)} samples of a batch have an image tensor")
            one_shape = len({image.shape for image in images}) == 1
            batch["images"] = torch.stack(images) if one_shape else images
        if self.with_notes:
            batch[NOTES] = [(each["id"], each["problem"], each.get("refused")) for each in instances]
        return batch


def _pad(rows: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
