"""Load a model for inference and resolve the device and precision to load it with."""

from __future__ import annotations

import ctypes
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.infer.engine.requests import ModelChoice
from llava.model.loading.placement import plan_placement
from llava.model.onednn.layers import use_onednn
from llava.model.overrides import find_change

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with what belongs to it. `image_processor` is None for a plain language model.

    `model` is a `LlavaLlamaForCausalLM`, or any causal language model of transformers.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    image_processor: CLIPImageProcessorPil | None
    context_length: int

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def patches(self) -> int | None:
        """The positions of an image of one view; None for a plain language model."""
        return None if self.image_processor is None else self.model.get_vision_tower().num_patches


def resolve_device(choice: ModelChoice, local_rank: int | None = None) -> ModelChoice:
    """Return `choice` with `auto` replaced by an existing device and a precision that suits it.

    Args:
        choice: Weights, device and precision as asked for.
        local_rank: The index of the GPU that a launcher assigned to this process.

    Raises:
        SettingsError: The device does not exist.
    """
    placement = plan_placement(
        device=None if choice.device == "auto" else choice.device,
        device_map="auto",
        dtype=None if choice.dtype == "auto" else choice.dtype,
        load_8bit=choice.load_8bit,
        load_4bit=choice.load_4bit,
        use_flash_attn=False,
    )
    device_map = placement.arguments["device_map"]
    device = str(device_map[""]) if isinstance(device_map, dict) else "cuda"
    if device == "cuda" and local_rank is not None and torch.cuda.device_count() > 1:
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
    return replace(choice, device=device, dtype=str(placement.dtype).removeprefix("torch."))


def find_changed_classes() -> str | None:
    """Return what other code has changed in the classes of the models that `load` loads, or None.

    Reads no weights: a model without any is made of the classes.
    """
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.multimodal_encoder.clip_encoder import NestedCLIP

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    image_side = {"mm_vision_tower": "none", "mm_vision_select_layer": -2, "mm_hidden_size": 8}
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(LlavaConfig(vocab_size=8, **small, **image_side))
        tower = model.get_vision_tower()
        assert tower is not None
        tower.vision_tower = NestedCLIP(CLIPVisionModel(CLIPVisionConfig(**small)))
    return find_change(model)


def keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of memory that is freed, for what is allocated next.

    It gives large blocks back to the system at once, and asks for them again for the next layer's
    activations, which the system then clears page by page: a tenth of a CPU's time. Does nothing elsewhere.
    """
    with suppress(OSError, TypeError, AttributeError):
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, 2**30)


def load(choice: ModelChoice) -> Loaded:
    """Load the chosen model.

    Raises:
        CheckpointError: The weights cannot be loaded.
        SettingsError: The device does not exist.
    """
    from llava.model.builder import load_pretrained_model  # slow, and not needed by resolve_device

    choice = resolve_device(choice)
    if choice.device == "cpu":
        keep_freed_memory()
    began = time.monotonic()
    tokenizer, model, image_processor, context_length = load_pretrained_model(
        choice.path,
        choice.base,
        choice.name,
        load_8bit=choice.load_8bit,
        load_4bit=choice.load_4bit,
        device=choice.device,
        dtype=choice.dtype,
    )
    use_onednn(model)
    seconds = time.monotonic() - began
    logger.info(f"{choice.name} loaded on {choice.device} in {choice.dtype}, {seconds:.1f} s")
    return Loaded(tokenizer, model, image_processor, context_length)
