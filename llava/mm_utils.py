"""The original's helper functions, under their original path."""

from __future__ import annotations

from llava.anyres import (
    divide_to_patches,
    get_anyres_image_grid_shape,
    process_anyres_image,
    resize_and_pad_image,
    select_best_resolution,
)
from llava.compat.stopping import KeywordsStoppingCriteria
from llava.image_reading import load_image_from_base64
from llava.images import expand2square, process_images
from llava.infer.jobs.names import get_model_name_from_path
from llava.prompts.encode import tokenizer_image_token

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]
