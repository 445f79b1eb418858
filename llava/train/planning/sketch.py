"""Make the model that the flags ask for without its weights, to count and measure what training it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM, PreTrainedModel

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.locate import find_folder
from llava.model.loading.placement import UNQUANTISED
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, NestedCLIP
from llava.tokenizer import LlamaSentencePieceTokenizer
from llava.train import build
from llava.train.planning.footprint import Footprint, measure

if TYPE_CHECKING:
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

# Constants of a quantised weight: one for each 64 elements, in 32 bits, or in 8 and again one for each 256.
_BLOCK, _BLOCKS = 64, 256


def read_base_config(model_args: ModelArguments) -> LlavaConfig:
    """Return the base model's config. Of a hub id, nothing else is downloaded."""
    name = model_args.model_name_or_path
    config: LlavaConfig = LlavaConfig.from_pretrained(find_folder(name) or name)
    return config


def sketch_model(
    tokenizer: LlamaSentencePieceTokenizer,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> PreTrainedModel:
    """Return the model as `train.assemble` makes it, on the meta device, from config.json alone.

    Quantised weights are there in the compute precision; see `measure_sketch`.
    """
    config = read_base_config(model_args)
    kind = LlavaLlamaForCausalLM if data_args.is_multimodal else LlamaForCausalLM
    with torch.device("meta"):
        model = kind(config).to(torch.bfloat16 if training_args.bf16 else torch.float32)
        build.set_padding_token(model, tokenizer, model_args.version)
        if model_args.freeze_backbone:
            model.model.requires_grad_(False)
        if training_args.bits in (4, 8):
            model.requires_grad_(False)
            for layer in _quantised(model):
                layer.register_forward_hook(_in_precision_of_input)
        if training_args.lora_enable:
            model = build.add_new_adapter(model, training_args)
            build.set_casts(model, training_args)
        if data_args.is_multimodal:
            _add_vision(model, model_args, training_args)
            build.choose_trained(model, tokenizer, model_args, training_args)
        build.set_precision(model, training_args)
    return model


def _add_vision(model: PreTrainedModel, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    inner, config = model.get_model(), model.config
    config.mm_vision_tower = model_args.vision_tower
    for name in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"):
        setattr(config, name, getattr(model_args, name))
    tower = CLIPVisionTower(model_args.vision_tower or "", config, delay_load=True)
    name = tower.vision_tower_name
    clip = CLIPVisionConfig.from_pretrained(find_folder(name) or name)
    tower.vision_tower = NestedCLIP(CLIPVisionModel(clip).requires_grad_(False))
    tower.is_loaded = True
    inner.vision_tower, config.mm_hidden_size = tower.to(training_args.compute_dtype), tower.hidden_size
    if inner.mm_projector is None:
        inner._make_projector()
    inner.mm_projector.requires_grad_(True)
    if training_args.bits in (4, 8):
        inner.mm_projector.to(training_args.compute_dtype)


def measure_sketch(model: PreTrainedModel, training_args: TrainingArguments) -> Footprint:
    """Return the footprint of a sketched model, of which one decoder layer is made on the CPU."""
    cpu = torch.device("cpu")
    footprint = measure(model, device=cpu, autocast=training_args.autocast_dtype)
    if training_args.bits not in (4, 8):
        return footprint
    constants = (1 + 4 / _BLOCKS) / _BLOCK if training_args.double_quant else 4 / _BLOCK
    size = 0.5 + constants if training_args.bits == 4 else 1.0
    weights = [layer.weight for layer in _quantised(model)]
    saved = sum(weight.numel() * (weight.element_size() - size) for weight in weights)
    return replace(footprint, frozen=footprint.frozen - saved)


def _quantised(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the layers that --bits 4 or 8 quantises: all linear ones of the language model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [
        layer
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
        and not layer.weight.requires_grad
        and not name.startswith(tuple(UNQUANTISED))
        and "lora_" not in name
    ]


def _in_precision_of_input(
    layer: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor
) -> torch.Tensor:
    """Return a layer's result as bitsandbytes does: float32 after a norm in float32, not autocast's bf16."""
    return result.to(given[0].dtype)
