"""The folders of images that the training files name, how many images each has, and which are missing.

Whole folders are listed, not single files checked: 600,000 images take seconds, also on a network disk.
Counts: LLaVA issue 702 (a complete download of each source). Addresses: LLaVA's README.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.errors import DataError
from llava.image_reading import has_image, image_path
from llava.samples import read_records, record_location

State = Literal["complete", "short", "missing"]


DATA_ROOT = Path("playground/data")
"""The data folder, where a command is not told another place."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of `.jpg` images; `exact` is False where sources give different counts."""

    path: str
    images: int
    source: str
    exact: bool = True


FOLDERS = (
    Folder("coco/train2017", 118_287, "http://images.cocodataset.org/zips/train2017.zip"),
    Folder("gqa/images", 148_854, "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),
    Folder(
        "ocr_vqa/images",
        207_572,
        "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_",
        exact=False,
    ),
    Folder(
        "textvqa/train_images",
        25_119,
        "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    ),
    Folder("vg/VG_100K", 64_346, "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip"),
    Folder("vg/VG_100K_2", 43_903, "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """The contents of one folder: `.jpg` files, and other image files, which no training file names."""

    folder: Folder
    jpg: int
    other: int
    state: State


def count_images(root: Path, folder: Folder) -> Found:
    """Count the images of one folder under `root`."""
    if not (root / folder.path).is_dir():
        return Found(folder, 0, 0, "missing")
    suffixes = [os.path.splitext(name)[1].lower() for name in _files(root / folder.path)]  # noqa: PTH122
    jpg = suffixes.count(".jpg")
    other = sum(suffix in {".jpeg", ".gif", ".png", ".webp", ".bmp", ".tif", ".tiff"} for suffix in suffixes)
    return Found(folder, jpg, other, "complete" if jpg >= folder.images else "short")


class Listing:
    """The images that exist under a root; each folder is listed once, on first use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}

    def has(self, image: str) -> bool:
        """Return whether `image`, a path with forward slashes under the root, is a file."""
        folder, _, name = image.rpartition("/")
        if folder not in self._names:
            path = self._root / folder
            # Path.is_dir raises for a name that is too long.
            self._names[folder] = frozenset(_files(path)) if os.path.isdir(path) else frozenset()  # noqa: PTH112
        # A name may also be written otherwise than it is listed: a/../b, or in other case on some disks.
        return name in self._names[folder] or has_image(self._root, image)


@dataclass(frozen=True, slots=True)
class Named:
    """The images of one training file: records with an image, different images, and missing ones."""

    records: int
    images: int
    missing: tuple[str, ...]


def check_named(root: Path, training_file: Path) -> Named:
    """Check that every image that `training_file` names exists.

    Raises:
        DataError: The file is missing or broken, or an image is no path under `root`.
    """
    listing = Listing(root)
    seen: dict[str, bool] = {}
    records = 0
    for position, row in read_records(training_file):
        where = record_location(training_file, position)
        if not isinstance(row, dict):
            raise DataError(f"{where} is {type(row).__name__}, wanted an object", code="not-an-object")
        image = row.get("image")
        if image is None:
            continue
        image_path(root, image, where)
        records += 1
        if image not in seen:
            seen[image] = listing.has(image)
    return Named(records, len(seen), tuple(sorted(image for image, there in seen.items() if not there)))


def _files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_file())
