"""Conversations to tensors, one sample at a time and only when asked for; errors name file, record and image.

Source: LLaVA v1.2.2 llava/train/train.py, LazySupervisedDataset.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, default_conversation
from llava.errors import DataError
from llava.images import process_images, read_image
from llava.prompts.labels import require_fit, supervise
from llava.samples import modality_length, read_samples, word_length
from llava.schema import Sample


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """The samples of one JSON file: read and checked at once, made into tensors when asked for."""

    def __init__(
        self, data_path: str | Path, tokenizer: Any, data_args: Any, *, template: Conversation | None = None
    ) -> None:
        """Read and check the file.

        Args:
            data_path: JSON array or .jsonl of conversations.
            tokenizer: Makes the ids; its `model_max_length` cuts text-only samples.
            data_args: `image_folder`, `image_aspect_ratio`, `is_multimodal`, `mm_use_im_start_end` and
                `image_processor` (may be set later, before the first image is asked for).
            template: How turns become text; `vicuna_v1` if None.

        Raises:
            DataError: The file, or a record in it, is not as it must be, or the template cannot hold it.
        """
        self.data_path = Path(data_path)
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.template = template or default_conversation
        self.samples = list(read_samples(self.data_path))
        if not self.samples:
            raise DataError(f"{data_path}: holds no sample")
        for index, sample in enumerate(self.samples):
            try:
                require_fit(sample, self.template)
            except DataError as error:
                raise DataError(f"{data_path}: record {index}: {error}") from error

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def lengths(self) -> list[int]:
        """Words of each sample, an image counted as 128."""
        return [word_length(sample) for sample in self.samples]

    @cached_property
    def modality_lengths(self) -> list[int]:
        """Words of each sample, negative for text alone; what the sampler groups by."""
        return [modality_length(sample) for sample in self.samples]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` (L,), `image` (3, S, S) in a multimodal run, `id`, and `problem` or None.

        A text-only sample of a multimodal run has a black image that no text refers to.
        """
        sample = self.samples[index]
        made = supervise(
            sample,
            self.template,
            self.tokenizer,
            max_length=self.tokenizer.model_max_length,
            mm_use_im_start_end=self.data_args.mm_use_im_start_end,
        )
        item: dict[str, Any] = {
            "id": sample.id,
            "problem": made.problem,
            "input_ids": torch.tensor(made.input_ids, dtype=torch.long),
            "labels": torch.tensor(made.labels, dtype=torch.long),
        }
        if sample.image is not None:
            item["image"] = self._read(sample, index)
        elif self.data_args.is_multimodal:
            side = self.data_args.image_processor.crop_size
            item["image"] = torch.zeros(3, side["height"], side["width"])
        return item

    def _read(self, sample: Sample, index: int) -> torch.Tensor:
        how = SimpleNamespace(image_aspect_ratio=self.data_args.image_aspect_ratio)
        try:
            image = read_image(Path(self.data_args.image_folder or ".") / str(sample.image))
            return process_images([image], self.data_args.image_processor, how)[0]
        except DataError as error:
            raise DataError(f"{self.data_path}: record {index} (id {sample.id!r}): {error}") from error


def count_learnable(
    input_ids: torch.Tensor, labels: torch.Tensor, *, image_positions: int, max_length: int | None
) -> torch.Tensor:
    """How many labels of each row are left to learn once images take their place and the end is cut off.

    Args:
        input_ids: (B, L), -200 for an image.
        labels: (B, L), -100 for what is not learned. A row's first label has nothing before it to learn from.
        image_positions: Positions one image takes.
        max_length: Positions after which a row is cut; None for never.
    """
    taken = torch.where(input_ids == IMAGE_TOKEN_INDEX, image_positions, 1)
    position = taken.cumsum(dim=1) - 1
    left = (labels != IGNORE_INDEX) & (position > 0)
    if max_length is not None:
        left &= position < max_length
    return left.sum(dim=1)
