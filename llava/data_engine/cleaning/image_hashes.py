"""Compare pictures by perceptual hash, which survives another name, size or compression."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import DataError
from llava.files import cache_folder, read_json, write_json
from llava.image_reading import image_path, read_image, require_image_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of the 64 bits of a perceptual hash; imagehash's authors take up to about 10 for the same picture.
IMAGE_BITS = 6
# The mean difference of the colours (0 to 255) of two small copies; saving a photo again changes 1 to 4.
_THUMBNAIL, _SAME_COLOUR = (16, 16), 8.0
_CACHE = "image_hashes.json"
_DECODERS = 4


class BenchmarkImages:
    """The benchmarks' pictures by perceptual hash, to compare a round's images with."""

    def __init__(self, known: Sequence[tuple[str, Path]], image_root: Path) -> None:
        self._known = known
        self._hashes = hash_images_once([path for _, path in known])
        self._image_root = image_root
        self._found: dict[str, str | None] = {}

    def find(self, image: str) -> str | None:
        """Return the benchmark that has the same picture, or None. An image is decoded once.

        Raises:
            DataError: The image is missing or cannot be decoded.
        """
        if image not in self._found:
            path = image_path(self._image_root, image, "a request")
            near = int(find_near_images(hash_images([path]), self._hashes)[0])
            is_same = near >= 0 and has_same_colours(path, self._known[near][1])
            self._found[image] = self._known[near][0] if is_same else None
        return self._found[image]


def hash_images(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return the perceptual hash of each image, 64 bits.

    Raises:
        DataError: An image is missing or cannot be decoded.
    """
    import imagehash
    import numpy as np

    hashes = [
        np.packbits(imagehash.phash(read_image(path)).hash.reshape(-1)).view(">u8")[0] for path in paths
    ]
    return np.array(hashes, dtype=np.uint64)


def hash_images_once(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return the perceptual hash of each image; one whose size and time are known from before is not decoded.

    Raises:
        DataError: An image is missing or cannot be decoded.
    """
    import numpy as np

    file = cache_folder() / _CACHE
    known: dict[str, int] = {}
    with suppress(DataError, TypeError, ValueError):  # none yet, or damaged
        known = dict(read_json(file)) if file.is_file() else {}
    keys = [_state(path) for path in paths]
    unread = [path for path, key in zip(paths, keys, strict=True) if key not in known]
    with ThreadPoolExecutor(_DECODERS) as pool:
        found = pool.map(lambda path: int(hash_images([path])[0]), unread)
        known |= dict(zip([key for key in keys if key not in known], found, strict=True))
    if unread:
        with suppress(OSError):  # a full disk: they are found again
            write_json(file, known, indent=None)
    return np.array([known[key] for key in keys], dtype=np.uint64)


def _state(path: Path) -> str:
    require_image_file(path)
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


def has_same_colours(first: Path, second: Path) -> bool:
    """Return whether two pictures of near hashes have nearly the same colours in nearly the same places.

    Drawings and signs with large plain areas can have near hashes although they show different things.
    """
    import numpy as np

    pixels = [np.asarray(read_image(path).resize(_THUMBNAIL), dtype=np.float32) for path in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean()) <= _SAME_COLOUR


def find_near_images(
    hashes: NDArray[np.uint64], known: NDArray[np.uint64], *, bits: int = IMAGE_BITS
) -> NDArray[np.int64]:
    """Return for each image the index of the nearest known one that differs in at most `bits`, else -1."""
    import numpy as np

    found = np.full(len(hashes), -1, dtype=np.int64)
    if len(known):
        for row, value in enumerate(hashes):
            distances = np.bitwise_count(known ^ value)
            nearest = int(distances.argmin())
            found[row] = nearest if distances[nearest] <= bits else -1
    return found
