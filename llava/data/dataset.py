"""Conversations to tensors, one sample at a time and only when asked for; errors name file, record and image.

A data set is a view of its file's index (llava/data/index.py): all ranks and workers share one copy.

Source: LLaVA v1.2.2 llava/train/train.py, LazySupervisedDataset.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, default_conversation
from llava.data.index import Samples, open_index
from llava.errors import DataError
from llava.images import process_images, read_image
from llava.prompts.labels import Supervised, require_fit, supervise
from llava.schema import Sample


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """The samples of one JSON file, or some of them, made into tensors when asked for.

    Attributes:
        index: The file's records.
        samples: What is learned from: in order, each decoded when asked for. `samples.rows` are their rows
            in the index.
    """

    def __init__(
        self, data_path: str | Path, tokenizer: Any, data_args: Any, *, template: Conversation | None = None
    ) -> None:
        """Open the file's index; the first time reads and checks the file.

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
        self.index = open_index(self.data_path)
        self.samples = Samples(self.index, np.arange(len(self.index)))
        if not self.samples:
            raise DataError(f"{data_path}: holds no sample")
        self._require_good_records()

    def subset(self, places: np.ndarray) -> LazySupervisedDataset:
        """The same data set with only the samples at `places`, numbers from 0 to its length, in order."""
        chosen = copy.copy(self)
        chosen.samples = Samples(self.index, self.samples.rows[places])
        return chosen

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> np.ndarray:
        """Words of each sample, an image counted as 128; int32."""
        return self.index.lengths[self.samples.rows]

    @property
    def modality_lengths(self) -> np.ndarray:
        """Words of each sample, negative for text alone; what the sampler groups by; int32."""
        return self.index.modality_lengths[self.samples.rows]

    def where(self, place: int) -> str:
        """File, record and id of a sample, to open a message with."""
        return self.index.where(self.samples.rows[place])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` (L,), `image` (3, S, S) in a multimodal run, `id`, and `problem` or None.

        A text-only sample of a multimodal run has a black image that no text refers to.
        """
        sample, made = self.samples[index], self.encoded(index)
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

    def encoded(self, index: int) -> Supervised:
        """Ids and labels of a sample, without its image."""
        return supervise(
            self.samples[index],
            self.template,
            self.tokenizer,
            max_length=self.tokenizer.model_max_length,
            mm_use_im_start_end=self.data_args.mm_use_im_start_end,
        )

    def _read(self, sample: Sample, index: int) -> torch.Tensor:
        how = SimpleNamespace(image_aspect_ratio=self.data_args.image_aspect_ratio)
        try:
            image = read_image(Path(self.data_args.image_folder or ".") / str(sample.image))
            return process_images([image], self.data_args.image_processor, how)[0]
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error

    def _require_good_records(self) -> None:
        """Raise the first bad record's error, with how many more there are of which kind."""
        bad, unfit = self.index.bad_rows, self.index.unfit_rows(self.template.sep_style)
        kinds = Counter(self.index.kind(row) for row in bad)
        if len(unfit):
            kinds["does not fit the template"] = len(unfit)
        if not kinds:
            return
        first = min([*bad[:1], *unfit[:1]])
        problem = self.index.problem(first) if first in bad[:1] else self._misfit(first)
        others = "".join(f"; {count:,} records: {kind}" for kind, count in kinds.items())
        raise DataError(problem + (others if kinds.total() > 1 else ""))

    def _misfit(self, row: int) -> str:
        try:
            require_fit(self.index[row], self.template)
        except DataError as error:
            return f"{self.index.where(row)}: {error}"
        raise AssertionError(f"{self.index.where(row)}: fits, but the index says that it does not")


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
