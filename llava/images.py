"""Turn images into the tensors that the vision tower takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava.anyres import process_anyres_image
from llava.image_reading import require_size, to_rgb

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, PretrainedConfig

Colour = tuple[int, int, int]


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

    Raises:
        DataError: An image is so large or so narrow that padding or resizing it would take gigabytes.
    """
    rgb = [_require_rgb(image) for image in images]
    if getattr(model_cfg, "image_aspect_ratio", None) == "anyres":  # a plain language model has none
        tiled = [
            process_anyres_image(image, image_processor, getattr(model_cfg, "image_grid_pinpoints", ""))
            for image in rgb
        ]
        return torch.stack(tiled) if len({views.shape for views in tiled}) == 1 else tiled
    squares = [_pad_if_wanted(image, image_processor, model_cfg) for image in rgb]
    # One at a time: images of unequal sizes cannot be stacked before they are resized.
    return torch.cat(
        [image_processor.preprocess(image, return_tensors="pt")["pixel_values"] for image in squares]
    )


def crop_picture(
    image: Image.Image, image_processor: CLIPImageProcessorPil, model_cfg: PretrainedConfig
) -> Image.Image:
    """Return the picture that the model sees of an image, before its colours are scaled.

    Args:
        image: In any mode.
        image_processor: The vision tower's image processor.
        model_cfg: The model's config; its `image_aspect_ratio` is not `anyres`.

    Returns:
        An RGB image of the tower's input size. `process_images` makes of it what it makes of `image`.
    """
    rgb = _pad_if_wanted(_require_rgb(image), image_processor, model_cfg)
    unscaled = image_processor.preprocess(rgb, do_rescale=False, do_normalize=False, return_tensors="np")
    return Image.fromarray(unscaled["pixel_values"][0].transpose(1, 2, 0).astype("uint8"))


def _require_rgb(image: Image.Image) -> Image.Image:
    require_size(image.size, "image")
    return to_rgb(image)


def _pad_if_wanted(
    rgb: Image.Image, image_processor: CLIPImageProcessorPil, model_cfg: PretrainedConfig
) -> Image.Image:
    """Return the image, in a square of the mean colour if the model was trained on such."""
    is_padded = getattr(model_cfg, "image_aspect_ratio", None) == "pad"
    return expand2square(rgb, mean_colour(image_processor)) if is_padded else rgb


def mean_colour(image_processor: CLIPImageProcessorPil) -> Colour:
    """Return the processor's mean as a colour, truncated as in the original: (122, 116, 104) for CLIP."""
    red, green, blue = (int(255 * channel) for channel in image_processor.image_mean)
    return red, green, blue
