"""Images as the model sees them, decoded in threads ahead of their use, once each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from llava.errors import DataError, LlavaError
from llava.images import load_image_from_base64, process_images, read_image
from llava.infer.engine.requests import ImageFile, ImageSource
from llava.infer.engine.schedule import Window

_DECODERS = 4


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as the model sees it, (3, S, S) or in tiles (views, 3, S, S); its first (width, height)."""

    tensor: torch.Tensor
    size: tuple[int, int]


def load_pixels(source: ImageSource, image_processor: Any, config: Any) -> Pixels:
    """The image, read and prepared as the model's config says.

    Raises:
        DataError: There is no such image, or it is broken.
    """
    if isinstance(source, ImageFile):
        image = read_image(source.path)
    else:
        image = load_image_from_base64(source.base64)
    return Pixels(process_images([image], image_processor, config)[0], image.size)


def decode_ahead(
    windows: Sequence[Window],
    names: Mapping[ImageSource, str],
    decode: Callable[[ImageSource], Pixels],
) -> Iterator[tuple[Window, dict[ImageSource, Pixels]]]:
    """Each window with its images; while one is answered the next one's are decoded.

    A window with a broken image comes without the groups that need it, and is the last.

    Args:
        windows: What is answered, in this order.
        names: What errors about an image open with.
        decode: Called once for each image, in a thread.

    Raises:
        DataError: An image cannot be decoded; all else in its window is answered first.
    """
    decoding: dict[ImageSource, Future[Pixels]] = {}
    pool = ThreadPoolExecutor(_DECODERS)
    try:
        for number, window in enumerate(windows):
            for ahead in windows[number : number + 2]:
                for source in ahead.images:
                    if source not in decoding:
                        decoding[source] = pool.submit(decode, source)
            images: dict[ImageSource, Pixels] = {}
            broken: dict[ImageSource, LlavaError] = {}
            for source in window.images:
                try:
                    images[source] = decoding[source].result()
                except LlavaError as error:
                    broken[source] = error
            if broken:
                yield _without(window, broken), images
                source, reason = next(iter(broken.items()))
                raise DataError(f"{names[source]}: {reason}") from reason
            yield window, images
            for source in window.last:
                del decoding[source]
    finally:
        pool.shutdown(cancel_futures=True)


def _without(window: Window, broken: Collection[ImageSource]) -> Window:
    groups = [group for group in window.groups if not any(image in broken for image in group.images)]
    images, last = (
        tuple(image for image in some if image not in broken) for some in (window.images, window.last)
    )
    return Window(images, tuple(groups), last)
