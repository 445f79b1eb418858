"""Load the tiny golden model once per process, and generate as the original does."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from llava.image_reading import read_image
from llava.images import process_images
from llava.infer.engine.load import Loaded, load
from llava.infer.engine.requests import ModelChoice
from llava.prompts.encode import tokenizer_image_token


@functools.cache
def tiny_model(golden: Path, adapter: bool = False) -> Loaded:
    """Load the golden projector or LoRA adapter with its language model, in float32 on the CPU."""
    path = golden / ("viii_lora" if adapter else "weights/tiny-pretrain")
    base = str(golden / "weights/tiny-vicuna-v1.5")
    return load(ModelChoice(str(path), base, path.name, device="cpu", dtype="float32"))


@torch.inference_mode()
def generate_alone(loaded: Loaded, prompt: str, image: Path | None, **settings: Any) -> str:
    """Answer one prompt by the model's `generate`, called as in the original's programs."""
    ids = torch.tensor([tokenizer_image_token(prompt, loaded.tokenizer)])
    pixels, sizes = None, None
    if image is not None:
        picture = read_image(image)
        pixels = process_images([picture], loaded.image_processor, loaded.model.config)
        sizes = [picture.size]
    settings = {"do_sample": False, "max_new_tokens": 32, "use_cache": True, **settings}
    output = loaded.model.generate(ids, images=pixels, image_sizes=sizes, **settings)
    text: str = loaded.tokenizer.batch_decode(output, skip_special_tokens=True)[0]
    return text.strip()
