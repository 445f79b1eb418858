"""Split large images into tiles and merge the tiles' features again.

Only v1.6 checkpoints use this (`image_aspect_ratio: anyres`). Sizes are (width, height) throughout, and a
grid is (tiles across, tiles down). Source: LLaVA v1.2.2 mm_utils.py and llava_arch.py.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from llava.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

Size = tuple[int, int]


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Return the candidate that keeps most of the image's pixels; on a tie, the one that wastes least.

    The pixels kept are those of the image scaled to fit, at most as many as it has. A second tie goes to
    the earlier candidate.
    """
    width, height = original_size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    return max(possible_resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Scale an image to fit `target_resolution` and centre it on black."""
    width, height = image.size
    wide, high = target_resolution
    if wide / width < high / height:
        scaled = (wide, min(math.ceil(height * (wide / width)), high))
    else:
        scaled = (min(math.ceil(width * (high / height)), wide), high)
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    canvas.paste(image.resize(scaled), ((wide - scaled[0]) // 2, (high - scaled[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into square tiles of side `patch_size`, row by row; tiles over the edge get black."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Sequence[int]] | None, patch_size: int
) -> tuple[int, int]:
    """Return how many tiles (across, down) an image of `image_size` is cut into."""
    wide, high = select_best_resolution(image_size, _parse_pinpoints(grid_pinpoints))
    return wide // patch_size, high // patch_size


def process_anyres_image(
    image: Image.Image, processor: CLIPImageProcessorPil, grid_pinpoints: str | Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the whole image resized to a square, then its tiles: (1 + tiles, 3, side, side)."""
    canvas = resize_and_pad_image(image, select_best_resolution(image.size, _parse_pinpoints(grid_pinpoints)))
    side = processor.size["shortest_edge"]
    views = [image.resize((side, side)), *divide_to_patches(canvas, processor.crop_size["height"])]
    return torch.stack([processor.preprocess(view, return_tensors="pt")["pixel_values"][0] for view in views])


def unpad_image(tensor: torch.Tensor, original_size: Size) -> torch.Tensor:
    """Remove the rows or columns of (D, rows, columns) that `resize_and_pad_image` filled with black."""
    rows, columns = tensor.shape[1:]
    width, height = original_size
    if width / height > columns / rows:
        margin = (rows - int(height * (columns / width))) // 2
        return tensor[:, margin : rows - margin]
    margin = (columns - int(width * (rows / height))) // 2
    return tensor[:, :, margin : columns - margin]


def merge_tiles(
    features: torch.Tensor, grid: tuple[int, int], image_size: Size, newline: torch.Tensor | None
) -> torch.Tensor:
    """Merge the features of a whole image and of its tiles into one sequence.

    Args:
        features: (1 + tiles, P, D), the whole image first; P is a square number of patches.
        grid: Tiles (across, down).
        image_size: Size of the original image, to find the rows or columns that are only padding.
        newline: (D,), appended to each row of patches after the padding is removed; None keeps the padding.

    Returns:
        (M, D): the whole image's patches, then the tiles' patches in the image's row-major order.
    """
    whole, tiles = features[0], features[1:]
    across, down = grid
    side = math.isqrt(whole.shape[0])
    grid_features = tiles.view(down, across, side, side, -1).permute(0, 2, 1, 3, 4)
    grid_features = grid_features.reshape(down * side, across * side, -1)
    if newline is not None:
        grid_features = unpad_image(grid_features.permute(2, 0, 1), image_size).permute(1, 2, 0)
        column = newline.to(grid_features).expand(grid_features.shape[0], 1, -1)
        grid_features = torch.cat((grid_features, column), dim=1)
    return torch.cat((whole, grid_features.flatten(0, 1)))


def _parse_pinpoints(given: str | Sequence[Sequence[int]] | None) -> list[Size]:
    """Return the candidate sizes, which a config holds as a list or as its text."""
    try:
        listed: Any = ast.literal_eval(given) if isinstance(given, str) else given
        return [(int(wide), int(high)) for wide, high in listed]
    except (ValueError, SyntaxError, TypeError) as error:
        raise CheckpointError(
            f"image_grid_pinpoints is {given!r}, wanted a list of [width, height] pairs: correct config.json",
            code="bad-grid-pinpoints",
        ) from error
