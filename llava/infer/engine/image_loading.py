"""Decode and preprocess images in threads, one window ahead of their use, each image once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from llava.errors import DataError, LlavaError
from llava.image_reading import load_image_from_base64, read_image, require_image_file
from llava.images import process_images
from llava.infer.digests import FileContent, look_at
from llava.infer.engine.requests import ImageFile, ImageSource
from llava.infer.engine.schedule import Window

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessorPil, PretrainedConfig

_DECODERS = 4

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True)
class Pixels:
    """A preprocessed image."""

    tensor: torch.Tensor  # (3, S, S), or (views, 3, S, S) for an image in tiles
    size: tuple[int, int]  # (width, height) of the original image
    content: FileContent | None = None  # of its file


def load_pixels(
    source: ImageSource, image_processor: CLIPImageProcessorPil | None, config: PretrainedConfig
) -> Pixels:
    """Read an image and preprocess it as the model's config says.

    Raises:
        DataError: The image is missing or broken.
    """
    image, content = read_source(source)
    return Pixels(process_images([image], image_processor, config)[0], image.size, content)


def read_source(source: ImageSource) -> tuple[Image, FileContent | None]:
    """Return an image, and what its file held.

    Raises:
        DataError: The image is missing or broken.
    """
    if not isinstance(source, ImageFile):
        return load_image_from_base64(source.base64), None
    content = None
    require_image_file(source.path)
    # First, so that a file that is replaced in between will not be taken for the one asked about.
    with suppress(OSError):  # reading the image explains it
        content = look_at(source.path)
    return read_image(source.path), content


def decode_ahead(
    windows: Sequence[Window],
    names: Mapping[ImageSource, str],
    decode: Callable[[ImageSource], Decoded],
) -> Iterator[tuple[Window, dict[ImageSource, Decoded]]]:
    """Yield each window with its images, decoding the next window's images meanwhile.

    If an image is broken, its window is yielded without the groups that need it; then the error is raised.

    Args:
        windows: The windows, in order.
        names: What error messages about an image start with.
        decode: Called once for each image, in a thread.

    Raises:
        DataError: An image cannot be decoded.
    """
    decoding: dict[ImageSource, Future[Decoded]] = {}
    pool = ThreadPoolExecutor(_DECODERS)
    try:
        for number, window in enumerate(windows):
            for ahead in windows[number : number + 2]:
                for source in ahead.images:
                    if source not in decoding:
                        decoding[source] = pool.submit(decode, source)
            images: dict[ImageSource, Decoded] = {}
            broken: dict[ImageSource, LlavaError] = {}
            for source in window.images:
                try:
                    images[source] = decoding[source].result()
                except LlavaError as error:
                    broken[source] = error
            if broken:
                yield _drop_images(window, broken), images
                source, reason = next(iter(broken.items()))
                raise DataError(f"{names[source]}: {reason}", code=reason.code) from reason
            yield window, images
            for source in window.last:
                del decoding[source]
    finally:
        pool.shutdown(cancel_futures=True)


def _drop_images(window: Window, broken: Collection[ImageSource]) -> Window:
    """Return the window without the broken images and the groups that need them."""
    return Window(
        images=tuple(image for image in window.images if image not in broken),
        groups=tuple(group for group in window.groups if not any(image in broken for image in group.images)),
        last=tuple(image for image in window.last if image not in broken),
    )
