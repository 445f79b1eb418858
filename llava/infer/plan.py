"""In which order and in which batches requests are answered. Pure; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.infer.requests import ImageSource

_BATCHES_A_WINDOW = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Requests answered with one set of images at hand: indices, batch by batch.

    `images` are all that the batches need, each once. `last` are those that no later window needs.
    """

    images: tuple[ImageSource, ...]
    batches: tuple[tuple[int, ...], ...]
    last: tuple[ImageSource, ...]


def plan(images: Sequence[tuple[ImageSource, ...]], lengths: Sequence[int], batch_size: int) -> list[Window]:
    """Windows of a few batches each: requests about one image together, prompts of like length in one batch.

    Args:
        images: Each request's images.
        lengths: How many positions each prompt takes.
        batch_size: The most requests in a batch.
    """
    first_seen = {group: index for index, group in reversed(list(enumerate(images)))}
    by_image = sorted(range(len(images)), key=lambda index: (first_seen[images[index]], index))
    size = batch_size * _BATCHES_A_WINDOW
    shares = [by_image[start : start + size] for start in range(0, len(by_image), size)]
    last_share = {image: number for number, share in enumerate(shares) for i in share for image in images[i]}
    windows = []
    for number, share in enumerate(shares):
        needed = tuple(dict.fromkeys(image for index in share for image in images[index]))
        by_length = sorted(share, key=lambda index: lengths[index])
        batches = tuple(
            tuple(by_length[start : start + batch_size]) for start in range(0, len(by_length), batch_size)
        )
        windows.append(Window(needed, batches, tuple(i for i in needed if last_share[i] == number)))
    return windows
