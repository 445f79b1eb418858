"""Find the images of benchmarks' questions, and make small JPEG files of them."""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from llava import benchmarks
from llava.errors import DataError, LlavaError
from llava.image_reading import image_path, open_image, to_rgb
from llava.log import progress

logger = logging.getLogger(__name__)

QUALITY = 70

ImageKey = tuple[str, str, str]
"""A benchmark, its split, and the image's name, or the question's id where the question file holds images."""


class ImageFinder:
    """Finds images under the folder of all benchmarks."""

    def __init__(self, eval_root: Path) -> None:
        self._eval_root = eval_root
        self._embedded = cache(self._read_embedded)

    def find(self, key: ImageKey) -> Path | bytes:
        """Return the image's file, or its content.

        Raises:
            DataError: There is none, or its name leaves the image folder.
            SettingsError: There is no such benchmark.
        """
        name, split, image = key
        benchmark = benchmarks.get(name)
        root = self._eval_root / benchmark.folder
        evaluation = benchmark.evaluation_for(split or None)
        if evaluation.questions != "mmbench":
            return image_path(root / evaluation.images, image, name)
        content = self._embedded(name, split).get(image)
        if content is None:
            raise DataError(f"{root}: question {image} has no image", code="missing-image")
        return base64.b64decode(content)

    def _read_embedded(self, name: str, split: str) -> dict[str, str]:
        """Return the images of a question file that holds them, in base64, by question id."""
        benchmark = benchmarks.get(name)
        root = self._eval_root / benchmark.folder
        try:
            questions = benchmark.read_questions(root, split or None)
        except (LlavaError, OSError) as error:
            logger.warning("%s, split %s: no images (%s)", name, split, error)
            return {}
        return {str(item.id): item.image_base64 for item in questions if item.image_base64}


def make_thumbnails(finder: ImageFinder, keys: Sequence[ImageKey], pixels: int) -> dict[ImageKey, bytes]:
    """Return a JPEG file for each image that can be read; how many cannot is logged.

    Args:
        finder: Where the images are.
        keys: The images, in order.
        pixels: The longer side, at most.
    """
    found: dict[ImageKey, bytes] = {}
    failed: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for key in progress(keys, name="thumbnails"):
        try:
            found[key] = _shrink(finder.find(key), pixels)
        except (LlavaError, ValueError) as error:
            failed[key[0]] += 1
            examples.setdefault(key[0], str(error))
    for name, count in failed.items():
        logger.warning("%s: %d images are left out, the first because of: %s", name, count, examples[name])
    return found


def _shrink(source: Path | bytes, pixels: int) -> bytes:
    with open_image(source) as image:
        # A JPEG decodes faster where most of its pixels are not wanted.
        image.draft("RGB", (2 * pixels, 2 * pixels))
        small = to_rgb(image)
        small.thumbnail((pixels, pixels))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
