"""Collate samples into a batch: pad on the right, truncate at the model's length, stack images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.errors import DataError
from llava.schema import RecordId

NOTES = "notes"
Note = tuple[RecordId, str | None, str | None]
"""A sample's id, why nothing is learned from it, and why it should end the run."""

Item = dict[str, Any]  # one sample's tensors by the names of the model's forward
Batch = dict[str, Any]  # the same of several samples


@dataclass
class DataCollatorForSupervisedDataset:
    """A callable that collates samples into the keyword arguments of the model's forward.

    The attention mask excludes padding by length, not by id: an `<unk>` inside a text is attended to (the
    original masks it out, because LLaMA pads with `<unk>`).

    Attributes:
        tokenizer: Provides `pad_token_id` for padding and `model_max_length` for truncation.
        with_notes: Add each sample's (id, problem, refused) under `notes`; `LLaVATrainer` removes them.
    """

    tokenizer: PreTrainedTokenizerBase
    with_notes: bool = False

    def __call__(self, instances: Sequence[Item]) -> Batch:
        """Return `input_ids`, `labels` and `attention_mask` of shape (B, L), and `images` if there are any.

        Images of one shape become a tensor (B, 3, H, W), others a list.

        Raises:
            DataError: Some samples have an image tensor and some have none.
        """
        longest = self.tokenizer.model_max_length
        ids = [instance["input_ids"][:longest] for instance in instances]
        labels = [instance["labels"][:longest] for instance in instances]
        lengths = torch.tensor([len(row) for row in ids])
        batch: Batch = {
            "input_ids": _pad(ids, self.tokenizer.pad_token_id),
            "labels": _pad(labels, IGNORE_INDEX),
            "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
        }
        images = [instance["image"] for instance in instances if "image" in instance]
        if images:
            if len(images) != len(instances):
                raise DataError(
                    f"{len(images)} of {len(instances)} samples of a batch have an image tensor",
                    code="mixed-images",
                )
            one_shape = len({image.shape for image in images}) == 1
            batch["images"] = torch.stack(images) if one_shape else images
        if self.with_notes:
            batch[NOTES] = [
                (instance["id"], instance["problem"], instance.get("refused")) for instance in instances
            ]
        return batch


def _pad(rows: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
