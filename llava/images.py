"""Read images and turn them into the tensors that the vision tower takes."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, UnidentifiedImageError

from llava.anyres import process_anyres_image
from llava.errors import DataError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, PretrainedConfig

Colour = tuple[int, int, int]

# What Pillow raises for a file that is truncated, is no image, or would decode to gigabytes.
BROKEN = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Return the image in `path`, fully decoded, as RGB (alpha dropped, first frame only).

    Raises:
        DataError: The file is missing, is no image, or is truncated.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such image file", code="missing-image")
        with Image.open(path) as image:
            return _to_rgb(image)
    except BROKEN as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); replace the file", code="unreadable-image"
        ) from error


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode an image file given in base64; keeps the mode it was stored in.

    Raises:
        DataError: The text is not base64 or holds no complete image.
    """
    try:
        decoded = Image.open(io.BytesIO(base64.b64decode(image)))
        decoded.load()
    except (*BROKEN, binascii.Error) as error:
        raise DataError(
            f"base64 text of {len(image)} characters holds no readable image ({error})",
            code="unreadable-image",
        ) from error
    return decoded


def expand2square(pil_img: Image.Image, background_color: Colour) -> Image.Image:
    """Pad an image to a square of its longer side, with the image in the centre.

    A 640x480 photo becomes 640x640 with 80 rows of the colour above and below; an odd remainder goes below
    or to the right. Source: LLaVA v1.2.2 mm_utils.py.
    """
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: CLIPImageProcessorPil, model_cfg: PretrainedConfig
) -> torch.Tensor | list[torch.Tensor]:
    """Preprocess images as the model was trained to see them, in float32.

    Args:
        images: In any mode; all are converted to RGB.
        image_processor: The vision tower's image processor.
        model_cfg: The model's config. Its `image_aspect_ratio` is `pad` (a square filled with the mean
            colour), `anyres` (tiles), or anything else for resize and centre crop.

    Returns:
        (N, 3, side, side), or (N, views, 3, side, side) for anyres; a list of N tensors when the
        number of views differs.
    """
    rgb = [_to_rgb(image) for image in images]
    aspect = getattr(model_cfg, "image_aspect_ratio", None)  # a plain language model has none
    if aspect == "anyres":
        tiled = [
            process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in rgb
        ]
        return torch.stack(tiled) if len({views.shape for views in tiled}) == 1 else tiled
    if aspect == "pad":
        fill = mean_colour(image_processor)
        rgb = [expand2square(image, fill) for image in rgb]
    # One at a time: images of unequal sizes cannot be stacked before they are resized.
    return torch.cat(
        [image_processor.preprocess(image, return_tensors="pt")["pixel_values"] for image in rgb]
    )


def mean_colour(image_processor: CLIPImageProcessorPil) -> Colour:
    """Return the processor's mean as a colour, truncated as in the original: (122, 116, 104) for CLIP."""
    red, green, blue = (int(255 * channel) for channel in image_processor.image_mean)
    return red, green, blue


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` as RGB. 16-bit grey keeps its upper eight bits, where Pillow would clip it."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        grey = image.convert("I")
        highest = grey.getextrema()[1]
        if isinstance(highest, int) and highest > 255:
            grey = grey.point(lambda value: value * (1 / 256))
        return grey.convert("L").convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns unless RGBA comes in between; the colours are the same.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
