"""Several data files as one data set: each file's samples are taken as often as its weight says."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from llava.data.collate import Item
from llava.data.dataset import LazySupervisedDataset
from llava.data.held_out import hold_out
from llava.errors import SettingsError
from llava.prompts.labels import Supervised
from llava.schema import Sample

logger = logging.getLogger(__name__)

MOST_TIMES = 1000  # a higher weight is a mistake, and its list of samples would not fit into memory


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file, and how often each of its samples is taken in an epoch."""

    path: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}:{self.weight:.15g}"


def data_files(data_path: str | Sequence[str]) -> list[DataFile]:
    """Return the files that `--data_path` names, as `FILE` or `FILE:WEIGHT`.

    A name that exists is a file as it stands, so that a path may contain a colon.
    """
    names = [data_path] if isinstance(data_path, str) else data_path
    return [_data_file(name) for name in names]


def _data_file(name: str) -> DataFile:
    path, _, weight = name.rpartition(":")
    if not path or Path(name).is_file():
        return DataFile(name)
    try:
        return DataFile(path, float(weight))
    except ValueError:
        return DataFile(name)


def data_file_problems(data_path: str | Sequence[str]) -> Iterator[str]:
    """Yield one message per file that is missing or given twice, and per weight that is no weight."""
    seen = set()
    for file in data_files(data_path):
        if not Path(file.path).is_file():
            yield f"--data_path {file.path}: no such file"
        elif not 0 < file.weight <= MOST_TIMES:
            yield f"--data_path {file}: wanted a weight above 0, at most {MOST_TIMES}"
        elif (place := Path(file.path).resolve()) in seen:
            yield f"--data_path {file.path}: is given twice; to take its samples twice, give {file.path}:2"
        else:
            seen.add(place)


class Mixture(ConcatDataset[Item]):
    """The samples of several data sets, one data set after the other.

    Attributes:
        parts: The data sets. Tokenizer, template and data arguments are the same for all.
        samples: The samples of all.
    """

    def __init__(self, parts: Sequence[LazySupervisedDataset]) -> None:
        super().__init__(parts)
        self.parts = parts
        self.samples: ConcatDataset[Sample] = ConcatDataset([part.samples for part in parts])
        self.tokenizer, self.template = parts[0].tokenizer, parts[0].template
        self.data_args = parts[0].data_args

    @property
    def lengths(self) -> np.ndarray:
        """Words of each sample, an image counting as 128; int32."""
        return np.concatenate([part.lengths for part in self.parts])

    @property
    def modality_lengths(self) -> np.ndarray:
        """Words of each sample, negative without an image, by which the sampler groups; int32."""
        return np.concatenate([part.modality_lengths for part in self.parts])

    def encode(self, index: int) -> Supervised:
        """Return the ids and labels of a sample, without its image."""
        number = bisect_right(self.cumulative_sizes, index)
        part = self.parts[number]
        return part.encode(index - self.cumulative_sizes[number] + len(part))


TrainingData = LazySupervisedDataset | Mixture


def mix(
    parts: Sequence[LazySupervisedDataset], files: Sequence[DataFile], *, held_out: float, seed: int
) -> tuple[TrainingData, TrainingData | None]:
    """Return the samples to train on, and those held out for validation, if any.

    Samples are held out before the others are repeated, so none of them is trained on. Each is validated
    once, whatever the weight of its file.

    Args:
        parts: One data set for each file.
        files: The files, for their weights.
        held_out: The fraction of images to hold out.
        seed: Decides what is held out, and what a weight that is not a whole number takes.

    Raises:
        SettingsError: A weight leaves no sample of a file; or nothing is held out, or everything.
    """
    held = None
    if held_out:
        parts, validation = hold_out(parts, held_out, seed=seed)
        held = _join(validation)
    return _join([_weigh(part, file, seed) for part, file in zip(parts, files, strict=True)]), held


def _join(parts: Sequence[LazySupervisedDataset]) -> TrainingData:
    return parts[0] if len(parts) == 1 else Mixture(parts)


def _weigh(dataset: LazySupervisedDataset, file: DataFile, seed: int) -> LazySupervisedDataset:
    """Take each sample as often as the whole part of a weight says, and a drawn share of them once more."""
    if file.weight == 1 or not len(dataset):
        return dataset
    count, times = len(dataset), int(file.weight)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    drawn = np.sort(order[: round((file.weight - times) * count)])
    chosen = dataset.subset(np.concatenate([np.tile(np.arange(count), times), drawn]))
    if not len(chosen):
        raise SettingsError(
            f"--data_path {file}: takes none of its {count:,} samples; give a higher weight",
            code="empty-weight",
        )
    logger.info("%s: %s samples an epoch, of %s", file, f"{len(chosen):,}", f"{count:,}")
    return chosen
