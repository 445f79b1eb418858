"""Images as the model sees them, decoded in threads ahead of their use, once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from llava.errors import DataError, LlavaError
from llava.images import load_image_from_base64, process_images, read_image
from llava.infer.plan import Window
from llava.infer.requests import ImageFile, ImageSource

_DECODERS = 4


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as the model sees it, (3, S, S) or in tiles (views, 3, S, S); its first (width, height)."""

    tensor: torch.Tensor
    size: tuple[int, int]


def pixels(source: ImageSource, image_processor: Any, config: Any) -> Pixels:
    """The image, read and prepared as the model's config says.

    Raises:
        DataError: There is no such image, or it is broken.
    """
    if isinstance(source, ImageFile):
        image = read_image(source.path)
    else:
        image = load_image_from_base64(source.base64)
    return Pixels(process_images([image], image_processor, config)[0], image.size)


def decoded_ahead(
    windows: Sequence[Window],
    names: Mapping[ImageSource, str],
    decode: Callable[[ImageSource], Pixels],
) -> Iterator[tuple[Window, dict[ImageSource, Pixels]]]:
    """Each window with its images; while one is answered the next one's are decoded.

    Args:
        windows: What is answered, in this order.
        names: What errors about an image open with.
        decode: Called once for each image, in a thread.

    Raises:
        DataError: An image cannot be decoded.
    """
    decoding: dict[ImageSource, Future[Pixels]] = {}
    pool = ThreadPoolExecutor(_DECODERS)
    try:
        for number, window in enumerate(windows):
            for ahead in windows[number : number + 2]:
                for source in ahead.images:
                    if source not in decoding:
                        decoding[source] = pool.submit(decode, source)
            yield window, {source: _result(decoding[source], names[source]) for source in window.images}
            for source in window.last:
                del decoding[source]
    finally:
        pool.shutdown(cancel_futures=True)


def _result(decoded: Future[Pixels], name: str) -> Pixels:
    try:
        return decoded.result()
    except LlavaError as error:
        raise DataError(f"{name}: {error}") from error
