"""The original's ways to read the images that a command line names. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from llava.image_reading import load_image_from_base64, read_image, to_rgb
from llava.infer.engine.requests import ImageFile
from llava.infer.fetch import resolve_image

if TYPE_CHECKING:
    from PIL import Image


class FileFlags(Protocol):
    """Flags that name images."""

    image_file: str
    sep: str


def image_parser(args: FileFlags) -> list[str]:
    """Return the images that `args.image_file` names, joined by `args.sep`."""
    names: list[str] = args.image_file.split(args.sep)
    return names


def load_image(image_file: str) -> Image.Image:
    """Return the image at a path or an http(s) address, as RGB.

    Raises:
        DataError: There is no such file, the download fails, or it is no image.
    """
    source = resolve_image(str(image_file))
    if isinstance(source, ImageFile):
        return read_image(source.path)
    return to_rgb(load_image_from_base64(source.base64))


def load_images(image_files: Iterable[str]) -> list[Image.Image]:
    """Return the images at paths or http(s) addresses, as RGB; see `load_image`."""
    return [load_image(image_file) for image_file in image_files]
