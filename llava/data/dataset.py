"""The training data set: turns one conversation at a time into tensors; errors name file, record and image.

A data set selects samples of its file's index (llava/data/index.py), which all ranks and workers share.

Source: LLaVA v1.2.2 llava/train/train.py, LazySupervisedDataset.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava import conversation
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.data.checks.image_files import UNREADABLE
from llava.data.checks.lengths import TokenLengths
from llava.data.checks.policy import raise_refused, select_usable
from llava.data.collate import Item
from llava.data.index import open_index
from llava.errors import DataError, SettingsError
from llava.image_reading import read_image
from llava.images import process_images
from llava.prompts.labels import Supervised, supervise
from llava.samples import read_records
from llava.schema import JsonObject, Policy, Sample

logger = logging.getLogger(__name__)


class DataSettings(Protocol):
    """The data arguments that a data set needs.

    Attributes:
        image_folder: The folder that the records' image paths start from.
        is_multimodal: Whether the model takes images.
        mm_use_im_start_end: Whether `<im_start>` and `<im_end>` enclose an image.
        image_aspect_ratio: How images are made square; see `process_images`.
        image_processor: The vision tower's image processor.
    """

    image_folder: str | None
    is_multimodal: bool
    mm_use_im_start_end: bool
    image_aspect_ratio: str
    image_processor: CLIPImageProcessorPil


class LazySupervisedDataset(Dataset[Item]):
    """The samples of one JSON file, or some of them, made into tensors on access.

    Attributes:
        index: The file's records.
        samples: The samples to train on; `samples.rows` are their rows in the index.
        problems: The problems of records and what became of them.
        bad_samples: What to do when an image cannot be read on access.
        defers_errors: With `bad_samples="error"`, report an unreadable image in the item's `refused` instead
            of raising, so that all ranks can finish the step.
        token_lengths: The samples' lengths, once counted (llava/data/checks/preflight.py).
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        data_args: DataSettings,
        *,
        template: Conversation | None = None,
        bad_samples: Policy = "error",
        defers_errors: bool = False,
    ) -> None:
        """Open the file's index; the first time, this reads and checks the file.

        Args:
            data_path: JSON array or .jsonl of conversations.
            tokenizer: Its `model_max_length` truncates text-only samples.
            data_args: `image_folder`, `image_aspect_ratio`, `is_multimodal`, `mm_use_im_start_end` and
                `image_processor` (may be set later, before the first image is asked for).
            template: The conversation template; `llava.conversation.default_conversation` if None.
            bad_samples: What to do about bad records, and about images that cannot be read on access: raise
                an error, or use a black image with all labels ignored.
            defers_errors: Even with "error", use a black image on access and report the error in `refused`:
                in a run all ranks must finish the step before they can save and stop.

        Raises:
            DataError: The file holds no sample; or, with `bad_samples="error"`, a record is invalid or does
                not fit the template.
        """
        self.data_path = Path(data_path)
        self.tokenizer = tokenizer
        self.data_args: DataSettings = data_args
        self.template = template or conversation.default_conversation
        self.bad_samples = bad_samples
        self.defers_errors = defers_errors
        self.token_lengths: TokenLengths | None = None
        self._records: Sequence[JsonObject] | None = None
        self.index = open_index(self.data_path)
        self.samples, self.problems = select_usable(self.index, self.template, bad_samples)
        raise_refused(self.problems)
        if not len(self.index):
            raise DataError(f"{data_path}: holds no sample", code="no-samples")

    def subset(self, indices: np.ndarray) -> LazySupervisedDataset:
        """Return a copy of the data set with only some samples, in the given order."""
        chosen = copy.copy(self)
        chosen.samples = self.samples.select(indices)
        chosen._records = None
        chosen.token_lengths = self.token_lengths and self.token_lengths.select(indices)
        return chosen

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> np.ndarray:
        """Words of each sample, an image counting as 128; int32."""
        return self.index.lengths[self.samples.rows]

    @property
    def modality_lengths(self) -> np.ndarray:
        """Words of each sample, negative without an image, by which the sampler groups; int32."""
        return self.index.modality_lengths[self.samples.rows]

    @property
    def list_data_dict(self) -> Sequence[JsonObject]:
        """The samples' records as the file has them, for code that reads the original's attribute.

        Read on first use, whole. Nothing here reads it, so it cannot be changed or set, except by a subclass
        that makes its samples of records of its own.
        """
        if self._records is None:
            records = [record for _, record in read_records(self.data_path)]
            self._records = tuple(records[row] for row in self.samples.rows)
        return self._records

    @list_data_dict.setter
    def list_data_dict(self, records: Sequence[JsonObject]) -> None:
        if hasattr(self, "index"):
            raise SettingsError(
                f"list_data_dict is read from {self.data_path} and cannot be set: write the records to a "
                "file, and give it as data_path",
                code="records-from-file",
            )
        self._records = records

    def location(self, index: int) -> str:
        """Return file, record and id of a sample, to open a message with."""
        return self.index.location(self.samples.rows[index])

    @property
    def image_folder(self) -> Path:
        """The folder that the records' image paths start from."""
        return Path(self.data_args.image_folder or ".")

    def __getitem__(self, index: int) -> Item:
        """Return `input_ids`, `labels` (L,), `id`, `problem`, `refused`, and `image` (3, S, S) if multimodal.

        A text-only sample of a multimodal run gets a black image that no text refers to. So does a sample
        whose image can no longer be read, unless that raises: all its labels are ignored and `problem` says
        so. `refused` is why the run should end after this step. Both are None for a good sample.

        Raises:
            DataError: The image cannot be read, or the whole image folder is gone.
        """
        sample, made = self.samples[index], self.encode(index)
        item: Item = {
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
                if (is_refused and not self.defers_errors) or not self.image_folder.is_dir():
                    raise
                logger.warning("%s; nothing is learned from it", error)
                item |= {"image": self._black(), "problem": UNREADABLE}
                item["refused"] = str(error) if is_refused else None
                item["labels"].fill_(IGNORE_INDEX)
        elif self.data_args.is_multimodal:
            item["image"] = self._black()
        return item

    def encode(self, index: int) -> Supervised:
        """Return the ids and labels of a sample, without its image."""
        return supervise(
            self.samples[index],
            self.template,
            self.tokenizer,
            max_length=self.tokenizer.model_max_length,
            mm_use_im_start_end=self.data_args.mm_use_im_start_end,
        )

    def _black(self) -> torch.Tensor:
        side = self.data_args.image_processor.crop_size
        return torch.zeros(3, side["height"], side["width"])

    def _read(self, sample: Sample, index: int) -> torch.Tensor:
        settings = SimpleNamespace(image_aspect_ratio=self.data_args.image_aspect_ratio)
        try:
            image = read_image(self.image_folder / str(sample.image))
            return process_images([image], self.data_args.image_processor, settings)[0]
        except DataError as error:
            raise DataError(f"{self.location(index)}: {error}", code=error.code) from error


def count_learnable(
    input_ids: torch.Tensor, labels: torch.Tensor, *, image_positions: int, max_length: int | None
) -> torch.Tensor:
    """Count the supervised labels of each row after image expansion and truncation.

    Args:
        input_ids: (B, L), -200 for an image.
        labels: (B, L), -100 where ignored. A row's first label is not predicted from anything.
        image_positions: Positions of an image.
        max_length: Positions at which a row is truncated; None for no limit.
    """
    lengths = torch.where(input_ids == IMAGE_TOKEN_INDEX, image_positions, 1)
    position = lengths.cumsum(dim=1) - 1
    supervised = (labels != IGNORE_INDEX) & (position > 0)
    if max_length is not None:
        supervised &= position < max_length
    return supervised.sum(dim=1)
