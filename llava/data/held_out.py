"""Which samples are held out for validation: whole images at a time, drawn by hash.

An image's samples are all learned from or all held out, else the loss would be that of a picture seen before.
The draw looks at one sample alone, so it is the same in every process and in a run that resumes, and an image
that is held out stays so when other data is mixed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import PurePosixPath

from llava.schema import RecordId

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


def split(
    samples: Iterable[tuple[str | None, RecordId]], *, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """The places of the samples to learn from and of those held out, given each one's image and id."""
    sides: tuple[list[int], list[int]] = ([], [])
    for place, (image, identifier) in enumerate(samples):
        sides[is_held_out(image, identifier, fraction=fraction, seed=seed)].append(place)
    return sides
