"""Read what belongs to a model besides its weights: what turns requests into ids and pictures, and back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import CLIPImageProcessorPil, GenerationConfig

from llava.errors import CheckpointError
from llava.infer.engine.generate import stop_ids_of
from llava.model.builder import read_context_length, read_tokenizer
from llava.model.fields import image_fields
from llava.model.language_model.llava_llama import LlavaConfig
from llava.model.loading.locate import locate
from llava.model.loading.source import Source, find_source
from llava.model.multimodal_encoder.builder import build_vision_tower

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava.infer.engine.requests import ModelChoice


@dataclass(frozen=True, slots=True)
class Front:
    """A model without weights. `patches` is the number of positions of an image."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: CLIPImageProcessorPil
    config: LlavaConfig
    patches: int
    stop_ids: Collection[int]
    context_length: int


def read_front(choice: ModelChoice) -> Front:
    """Read all of a model but its weights.

    Raises:
        CheckpointError: Files are missing, or it is a language model without images.
    """
    source = find_source(choice.path, choice.base)
    if not source.is_multimodal:
        raise CheckpointError(
            f"{source.folder}: is a language model without images, which vLLM reads as it is",
            code="not-multimodal",
        )
    config = LlavaConfig.from_pretrained(source.config_folder)
    tower = build_vision_tower(config, delay_load=True)
    tower.vision_tower_name = str(locate(tower.vision_tower_name, near=source.folders, what="vision tower"))
    tokenizer = read_tokenizer(source)
    return Front(
        tokenizer,
        CLIPImageProcessorPil.from_pretrained(tower.vision_tower_name),
        config,
        tower.num_patches + (image_fields(config).mm_vision_select_feature == "cls_patch"),
        _read_stop_ids(source, config, tokenizer),
        read_context_length(config),
    )


def _read_stop_ids(
    source: Source, config: LlavaConfig, tokenizer: PreTrainedTokenizerBase
) -> Collection[int]:
    """Return the ids that end an answer, from the files that a loaded model's settings come from."""
    if (source.base / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(source.base)
    else:
        settings = GenerationConfig.from_model_config(config)
    return stop_ids_of(settings, tokenizer)
