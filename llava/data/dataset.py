"""Conversations to tensors, one sample at a time and only when asked for; errors name file, record and image.

A data set is a view of its file's index (llava/data/index.py): all ranks and workers share one copy.

Source: LLaVA v1.2.2 llava/train/train.py, LazySupervisedDataset.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, default_conversation
from llava.data.checks.image_files import UNREADABLE
from llava.data.checks.lengths import Lengths
from llava.data.checks.policy import Policy, choose, refuse
from llava.data.index import open_index
from llava.errors import DataError
from llava.images import process_images, read_image
from llava.prompts.labels import Supervised, supervise
from llava.schema import Sample

logger = logging.getLogger(__name__)


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """The samples of one JSON file, or some of them, made into tensors when asked for.

    Attributes:
        index: The file's records.
        samples: What is learned from: in order, each decoded when asked for. `samples.rows` are their rows
            in the index.
        problems: What was wrong with records, and what became of them.
        bad_samples: What becomes of an image that cannot be read when it is its turn.
        token_lengths: Each sample's positions, once they are counted (llava/data/checks/preflight.py).
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer: Any,
        data_args: Any,
        *,
        template: Conversation | None = None,
        bad_samples: Policy = "error",
    ) -> None:
        """Open the file's index; the first time reads and checks the file.

        Args:
            data_path: JSON array or .jsonl of conversations.
            tokenizer: Makes the ids; its `model_max_length` cuts text-only samples.
            data_args: `image_folder`, `image_aspect_ratio`, `is_multimodal`, `mm_use_im_start_end` and
                `image_processor` (may be set later, before the first image is asked for).
            template: How turns become text; `vicuna_v1` if None.
            bad_samples: What becomes of bad records, and of images that cannot be read when it is their turn:
                an error, or a black image and nothing to learn (with `keeps_going` set, in any case that).

        Raises:
            DataError: The file holds no sample; or, if these are errors, a record in it is not as it must be
                or does not fit the template.
        """
        self.data_path = Path(data_path)
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.template = template or default_conversation
        self.bad_samples = bad_samples
        self.keeps_going = False
        self.token_lengths: Lengths | None = None
        self.index = open_index(self.data_path)
        self.samples, self.problems = choose(self.index, self.template, bad_samples)
        refuse(self.problems)
        if not len(self.index):
            raise DataError(f"{data_path}: holds no sample")

    def subset(self, places: np.ndarray) -> LazySupervisedDataset:
        """The same data set with only the samples at `places`, numbers from 0 to its length, in order."""
        chosen = copy.copy(self)
        chosen.samples = self.samples.at(self.samples.rows[places])
        chosen.token_lengths = self.token_lengths and self.token_lengths.at(places)
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
        """`input_ids`, `labels` (L,), `image` (3, S, S) in a multimodal run, `id`, `problem` and `refused`.

        A text-only sample of a multimodal run has a black image that no text refers to. So has one whose
        image can no longer be read, if that is to stop no run; its problem says so, and nothing is learned.
        `refused` is why the run should end all the same, when it can; both are None for a good sample.

        Raises:
            DataError: The image cannot be read, or the whole image folder is gone.
        """
        sample, made = self.samples[index], self.encoded(index)
        item: dict[str, Any] = {
            "id": sample.id,
            "problem": made.problem,
            "refused": None,
            "input_ids": torch.tensor(made.input_ids, dtype=torch.long),
            "labels": torch.tensor(made.labels, dtype=torch.long),
        }
        if sample.image is not None:
            try:
                item["image"] = self._read(sample, index)
            except DataError as error:
                is_refused = self.bad_samples == "error"
                if (is_refused and not self.keeps_going) or not self._image_folder.is_dir():
                    raise
                logger.warning("%s; nothing is learned from it", error)
                item |= {"image": self._black(), "problem": UNREADABLE}
                item["refused"] = str(error) if is_refused else None
                item["labels"].fill_(IGNORE_INDEX)
        elif self.data_args.is_multimodal:
            item["image"] = self._black()
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

    @property
    def _image_folder(self) -> Path:
        return Path(self.data_args.image_folder or ".")

    def _black(self) -> torch.Tensor:
        side = self.data_args.image_processor.crop_size
        return torch.zeros(3, side["height"], side["width"])

    def _read(self, sample: Sample, index: int) -> torch.Tensor:
        how = SimpleNamespace(image_aspect_ratio=self.data_args.image_aspect_ratio)
        try:
            image = read_image(self._image_folder / str(sample.image))
            return process_images([image], self.data_args.image_processor, how)[0]
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error


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
