"""The files that hold the features of a folder's images: `llava features` writes them, the data engine reads.

`NAME.npy` is the array, `NAME.json` beside it says which images its rows are of, and of which vision tower.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import DataError
from llava.files import atomic_write, read_json, write_json
from llava.schema import JsonObject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
STEP = "llava features"


@dataclass(frozen=True, slots=True)
class ImageState:
    """A path under the image folder, the file's size in bytes, and when it was modified, in ns."""

    name: str
    bytes: int
    modified: int


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a folder's images.

    Attributes:
        tower: The fingerprint of the vision tower.
        images: What each row is of.
        vectors: One row of length 1 for each image: (N, D).
    """

    tower: str
    images: tuple[ImageState, ...]
    vectors: NDArray[np.floating]


def image_state(folder: Path, name: str) -> ImageState:
    """Return the state of an image's file now."""
    found = (folder / name).stat()
    return ImageState(name, found.st_size, found.st_mtime_ns)


def write_features(path: Path, features: Features) -> None:
    """Write the array to `path`, an .npy file, and beside it what its rows are of."""
    import numpy as np

    with atomic_write(path, binary=True) as stream:
        np.save(stream, features.vectors, allow_pickle=False)
    about: JsonObject = {
        "schema": SCHEMA,
        "tower": features.tower,
        "sha256": _sha256(path),
        "images": [[one.name, one.bytes, one.modified] for one in features.images],
    }
    write_json(path.with_suffix(".json"), about, indent=None)


def read_features(path: Path) -> Features:
    """Return the features in `path`, an .npy file.

    Raises:
        DataError: It or the file beside it is missing or damaged, or the two do not fit.
    """
    import numpy as np

    about = path.with_suffix(".json")
    for file in (path, about):
        if not file.is_file():
            raise DataError(f"{file}: no such file; `{STEP}` writes it", code="missing-file")
    value = read_json(about, strict=True)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(f"{about}: wanted an object of schema {SCHEMA}; run `{STEP}`", code="wrong-schema")
    if value.get("sha256") != _sha256(path):  # a run was killed between the two
        raise DataError(f"{path}: is not what {about} is about; run `{STEP}` again", code="broken-features")
    try:
        images = tuple(ImageState(str(name), int(size), int(time)) for name, size, time in value["images"])
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise ValueError(f"shape {vectors.shape} for {len(images)} images")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{path}: {error}; run `{STEP}` again", code="broken-features") from error
    return Features(str(value.get("tower")), images, vectors)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
