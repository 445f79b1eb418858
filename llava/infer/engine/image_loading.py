"""Decode images and encode prompts in threads, one window ahead of their use, each image once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from llava.errors import DataError, LlavaError
from llava.image_reading import load_image_from_base64, read_image, require_image_file
from llava.images import process_images
from llava.infer.digests import FileContent, look_at
from llava.infer.engine.requests import ImageFile, ImageSource, Request
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


def read_ahead(
    windows: Sequence[Window],
    requests: Sequence[Request],
    decode: Callable[[ImageSource], Decoded],
    encode: Callable[[Request], list[int]],
) -> Iterator[tuple[Window, dict[ImageSource, Decoded], dict[int, list[int]]]]:
    """Yield each window with its images and its requests' token ids, reading the next window meanwhile.

    If an image is broken, its window is yielded without the groups that need it; then the error is raised.

    Args:
        windows: The windows of the requests, in order.
        requests: All requests; an error about an image starts with the name of the first that has it.
        decode: Called once for each image, in a thread.
        encode: Returns a request's token ids, called in a thread.

    Raises:
        DataError: An image cannot be decoded, or a request not be encoded.
    """
    decoding: dict[ImageSource, Future[Decoded]] = {}
    encoding: deque[Future[dict[int, list[int]]]] = deque()
    pool = ThreadPoolExecutor(_DECODERS)

    def start(window: Window) -> None:
        indices = [index for group in window.groups for index in group.requests]
        encoding.append(pool.submit(lambda: {index: encode(requests[index]) for index in indices}))
        for source in window.images:
            if source not in decoding:
                decoding[source] = pool.submit(decode, source)

    try:
        for number, window in enumerate(windows):
            for ahead in windows[number + bool(number) : number + 2]:
                start(ahead)
            ids = encoding.popleft().result()
            images: dict[ImageSource, Decoded] = {}
            broken: dict[ImageSource, LlavaError] = {}
            for source in window.images:
                try:
                    images[source] = decoding[source].result()
                except LlavaError as error:
                    broken[source] = error
            if broken:
                yield _drop_images(window, broken), images, ids
                source, reason = next(iter(broken.items()))
                name = next(request.name for request in requests if source in request.images)
                raise DataError(f"{name}: {reason}", code=reason.code) from reason
            yield window, images, ids
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
