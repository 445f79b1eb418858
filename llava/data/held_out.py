"""Which samples are held out for validation: whole images at a time, drawn by hash.

An image's samples are all learned from or all held out, else the loss would be that of a picture seen before.
The draw looks at one sample alone, so it is the same in every process and in a run that resumes, and an image
that is held out stays so when other data is mixed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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
    """Whether a sample is of the held-out `fraction` of images; one of text alone is drawn by its id.

    Args:
        image: Path under the image folder; `./a.jpg` and `a.jpg` are one image.
        identifier: The sample's id.
        fraction: From 0 (none) to 1 (all), of images.
        seed: Another seed holds out others.
    """
    name = f"id {identifier}" if image is None else f"image {PurePosixPath(image)}"
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * _HASHES


def hold_out(
    dataset: LazySupervisedDataset, fraction: float, *, seed: int
) -> tuple[LazySupervisedDataset, LazySupervisedDataset]:
    """The samples to learn from and those held out, each in the file's order.

    Raises:
        SettingsError: Either side would be empty.
    """
    index, rows = dataset.index, dataset.samples.rows
    held = held_out_places(
        index.images(rows), lambda place: index.identifier(rows[place]), fraction=fraction, seed=seed
    )
    count = int(held.sum())
    if count in (0, len(held)):
        raise SettingsError(
            f"{dataset.data_path}: --held_out {fraction:g} leaves {len(held) - count} samples to learn from "
            f"and {count} to validate on; choose another part, or name a file by --eval_data_path"
        )
    logger.info("held out for validation: %s of %s samples", f"{count:,}", f"{len(held):,}")
    return dataset.subset(np.flatnonzero(~held)), dataset.subset(np.flatnonzero(held))


def warn_of_shared_images(learned: LazySupervisedDataset, held: LazySupervisedDataset) -> None:
    """Say how many of the images validated on are learned from, too."""
    names, theirs = (
        {str(PurePosixPath(name.as_py())) for name in each.index.images(each.samples.rows).dictionary}
        for each in (held, learned)
    )
    if shared := names & theirs:
        logger.warning(
            f"{held.data_path}: {len(shared):,} of its {len(names):,} images are in {learned.data_path}, "
            f"too, {min(shared)} for one: losses on them say less about images never seen"
        )


def held_out_places(
    images: pa.DictionaryArray, identifier: Callable[[int], RecordId], *, fraction: float, seed: int
) -> np.ndarray:
    """Whether each sample is held out, (N,) bool.

    Args:
        images: Image names, null for text alone; each different name is looked at once.
        identifier: A sample's id, by its place; asked for where there is no image.
        fraction: See `is_held_out`.
        seed: See `is_held_out`.
    """
    drawn = [is_held_out(name.as_py(), "", fraction=fraction, seed=seed) for name in images.dictionary]
    held = np.array(pa.array(drawn, pa.bool_()).take(images.indices).fill_null(False).to_numpy(False))
    for place in np.flatnonzero(images.is_null().to_numpy(False)):
        held[place] = is_held_out(None, identifier(place), fraction=fraction, seed=seed)
    return held
