"""Hold out samples for validation, whole images at a time, selected by hash.

All samples of an image are trained on or all are held out; otherwise the validation loss would be that of
images seen in training. The selection depends on one sample only, so it is the same on every rank, after a
resume and when other data is mixed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from llava.data.dataset import LazySupervisedDataset
from llava.errors import SettingsError
from llava.schema import RecordId

logger = logging.getLogger(__name__)

_HASHES = 2**64


def is_held_out(image: str | None, identifier: RecordId, *, fraction: float, seed: int) -> bool:
    """Return whether a sample belongs to the held-out `fraction`, by its image, or by its id without one.

    Args:
        image: Path under the image folder; `./a.jpg` and `a.jpg` are the same image.
        identifier: The sample's id.
        fraction: Fraction of the images, from 0 to 1.
        seed: Seed of the hash.
    """
    name = f"id {identifier}" if image is None else f"image {PurePosixPath(image)}"
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * _HASHES


def hold_out(
    datasets: Sequence[LazySupervisedDataset], fraction: float, *, seed: int
) -> tuple[list[LazySupervisedDataset], list[LazySupervisedDataset]]:
    """Split each data set into training and held-out samples, in the file's order.

    Raises:
        SettingsError: There would be nothing to train on, or nothing to validate on.
    """
    masks = [_mask(dataset, fraction, seed) for dataset in datasets]
    count, total = sum(int(mask.sum()) for mask in masks), sum(map(len, masks))
    if count in (0, total):
        names = ", ".join(str(dataset.data_path) for dataset in datasets)
        raise SettingsError(
            f"{names}: --held_out {fraction:g} leaves {total - count} samples to train on "
            f"and {count} to validate on; choose another fraction, or give a file by --eval_data_path",
            code="empty-split",
        )
    logger.info("held out for validation: %s of %s samples", f"{count:,}", f"{total:,}")
    training, held = (
        [dataset.subset(np.flatnonzero(mask == side)) for dataset, mask in zip(datasets, masks, strict=True)]
        for side in (False, True)
    )
    return training, held


def _mask(dataset: LazySupervisedDataset, fraction: float, seed: int) -> np.ndarray:
    index, rows = dataset.index, dataset.samples.rows
    return held_out_mask(
        index.images(rows), lambda number: index.identifier(rows[number]), fraction=fraction, seed=seed
    )


def warn_of_shared_images(training: LazySupervisedDataset, validation: LazySupervisedDataset) -> None:
    """Warn if images of the validation data are also in the training data."""
    validated, trained = (
        {str(PurePosixPath(name.as_py())) for name in dataset.index.images(dataset.samples.rows).dictionary}
        for dataset in (validation, training)
    )
    if shared := validated & trained:
        logger.warning(
            f"{validation.data_path}: {len(shared):,} of its {len(validated):,} images are in "
            f"{training.data_path} as well, {min(shared)} for one: losses on them say little about new images"
        )


def held_out_mask(
    images: pa.DictionaryArray, identifier: Callable[[int], RecordId], *, fraction: float, seed: int
) -> np.ndarray:
    """Return (N,) bool: which samples are held out.

    Args:
        images: Image names, null without an image; each distinct name is hashed once.
        identifier: Returns the id of the n-th sample; called for samples without an image.
        fraction: See `is_held_out`.
        seed: See `is_held_out`.
    """
    selected = [is_held_out(name.as_py(), "", fraction=fraction, seed=seed) for name in images.dictionary]
    held = np.array(pa.array(selected, pa.bool_()).take(images.indices).fill_null(False).to_numpy(False))
    for number in np.flatnonzero(images.is_null().to_numpy(False)):
        held[number] = is_held_out(None, identifier(number), fraction=fraction, seed=seed)
    return held
