"""The steps from flags to a model and data that are ready to train; `train.assemble` calls them in order.

Source: LLaVA v1.2.2 llava/train/train.py, train() (what is frozen, cast and written to the config).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import torch
from peft import prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llava.conversation import Conversation, conv_templates, default_conversation
from llava.data.held_out import warn_of_shared_images
from llava.data.mixture import TrainingData, data_files, mix
from llava.errors import CheckpointError, SettingsError, one_line
from llava.model import lora
from llava.model.fields import image_fields
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.checkpoint import PROJECTOR_FILES, find_first_file
from llava.model.loading.locate import locate
from llava.model.loading.placement import UNQUANTISED, avoid_slow_kernels
from llava.model.loading.run_record import require_trained_base
from llava.model.loading.weights import check_weight_file, check_weight_files
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.vocabulary import grow_embeddings
from llava.tokenizer import LlamaSentencePieceTokenizer
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.check_data import open_checked
from llava.train.init_adapter import locate_adapter
from llava.train.step.recipe import uses_zero3

logger = logging.getLogger(__name__)

# Versions without a template of that name: the original formats both as vicuna_v1.
PLAIN_VERSIONS = ("v0", "v0.5")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that training starts from: folder, config and conversation template."""

    folder: Path
    config: LlavaConfig
    template: Conversation


def locate_base(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> Base:
    """Find the files of base model, adapter and vision tower, and fill in the flags that they decide.

    Raises:
        SettingsError: Flags do not fit the model.
        CheckpointError: A file is missing or damaged.
    """
    if training_args.cache_dir:
        huggingface_hub.constants.HF_HUB_CACHE = training_args.cache_dir
    template = template_of(model_args.version)
    folder = locate(model_args.model_name_or_path, what="--model_name_or_path")
    config = LlavaConfig.from_pretrained(folder)
    if model_args.init_adapter:
        adapter = locate_adapter(model_args.init_adapter, model_args.model_name_or_path, training_args)
        require_trained_base(adapter, folder)
        model_args.init_adapter = str(adapter)
    resolve_vision_flags(model_args, config)
    if model_args.vision_tower:
        check_weight_files(locate(model_args.vision_tower, near=[folder], what="--vision_tower"))
    data_args.is_multimodal = bool(model_args.vision_tower)
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
    return Base(folder, config, template)


def load_data(
    tokenizer: LlamaSentencePieceTokenizer,
    base: Base,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> tuple[TrainingData, TrainingData | None]:
    """Check the training data and return the samples to train on and those to validate on, if any.

    Raises:
        DataError: A record or an image is invalid.
    """
    positions = _image_positions(model_args, base.folder)
    settings = (tokenizer, base.template, data_args, training_args, positions)
    files = data_files(data_args.data_path or "")
    parts = [open_checked(file.path, *settings) for file in files]
    dataset, held = mix(parts, files, held_out=data_args.held_out, seed=training_args.order_seed)
    if not data_args.eval_data_path:
        return dataset, held
    eval_dataset = open_checked(data_args.eval_data_path, *settings)
    for part in parts:
        warn_of_shared_images(part, eval_dataset)
    return dataset, eval_dataset


def template_of(version: str) -> Conversation:
    """Return the conversation template that `--version` names.

    Raises:
        SettingsError: There is no such template. (The original silently trains on vicuna_v1.)
    """
    if version in PLAIN_VERSIONS:
        logger.info("--version %s: the template is vicuna_v1, as in the original", version)
        return default_conversation
    if version not in conv_templates:
        names = ", ".join(sorted({*conv_templates, *PLAIN_VERSIONS}))
        raise SettingsError(
            f"--version {version}: no such template; use one of {names}", code="unknown-template"
        )
    return conv_templates[version]


def projector_file(name: str) -> Path:
    """Return the stage-1 projector file of a file, folder or hub id.

    Raises:
        CheckpointError: There is no such file, or the folder has no projector.
    """
    if Path(name).is_file():
        return Path(name)
    if Path(name).name in PROJECTOR_FILES:
        raise CheckpointError(
            f"{name}: no such file (--pretrain_mm_mlp_adapter); scripts/v1_5/pretrain.sh trains a projector",
            code="missing-projector",
        )
    folder = locate(name, what="--pretrain_mm_mlp_adapter")
    path = find_first_file(folder, PROJECTOR_FILES)
    if path is None:
        raise CheckpointError(
            f"{folder}: no projector here; wanted {' or '.join(PROJECTOR_FILES)}", code="missing-projector"
        )
    return path


def resolve_vision_flags(model_args: ModelArguments, config: LlavaConfig) -> None:
    """Fill in the vision flags from the base model's config; refuse flags that contradict it."""
    if model_args.pretrain_mm_mlp_adapter:
        path = projector_file(model_args.pretrain_mm_mlp_adapter)
        check_weight_file(path)
        model_args.pretrain_mm_mlp_adapter = str(path)
    fields = image_fields(config)
    if not fields.mm_vision_tower:
        return
    model_args.vision_tower = model_args.vision_tower or fields.mm_vision_tower
    defaults = ModelArguments()
    for flag in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"):
        asked, own = getattr(model_args, flag), getattr(fields, flag)
        if own is None or asked == own:
            continue
        if asked != getattr(defaults, flag):
            raise SettingsError(
                f"--{flag} {asked}: the base model was trained with {own}; use that, or leave the flag out",
                code="contradicts-base",
            )
        logger.info("--%s is taken from the base model: %s", flag, own)
        setattr(model_args, flag, own)


def _image_positions(model_args: ModelArguments, folder: Path) -> int:
    """Return how many positions an image takes; this reads only the tower's config."""
    if not model_args.vision_tower:
        return 1
    tower_folder = locate(model_args.vision_tower, near=[folder], what="--vision_tower")
    tower = CLIPVisionTower(str(tower_folder), model_args, delay_load=True)
    _ = tower.depth  # refuses a layer that the tower does not have, before the language model is loaded
    return tower.num_patches + (tower.select_feature == "cls_patch")


def load_language_model(
    base: Base,
    model_args: ModelArguments,
    training_args: TrainingArguments,
    attn_implementation: str | None,
) -> PreTrainedModel:
    """Load the language model's weights, in the training precision or quantized.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not fit the config.
    """
    folder, config = base.folder, base.config
    check_weight_files(folder)
    avoid_slow_kernels()
    kind = LlavaLlamaForCausalLM if model_args.vision_tower else LlamaForCausalLM
    settings: dict[str, object] = {"dtype": torch.bfloat16 if training_args.bf16 else torch.float32}
    if attn_implementation == "flash_attention_2" and training_args.compute_dtype == torch.float32:
        logger.warning(
            "flash attention computes in half precision only: using PyTorch's own attention (SDPA)"
        )
        attn_implementation = "sdpa"
    if attn_implementation:
        settings["attn_implementation"] = attn_implementation
    if training_args.bits in (4, 8):
        settings |= _quantisation(training_args)
    if model_args.vision_tower:
        settings["config"] = config
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **settings)
    except UnpicklingError as error:  # torch's own message advises to run the file's code
        raise CheckpointError(
            f"{folder}: holds more than tensors, or is damaged; its code is not run", code="unsafe-pickle"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: the model cannot be loaded: {one_line(error, 300)}", code="unloadable-weights"
        ) from error
    missing = set(report["missing_keys"])
    if model_args.pretrain_mm_mlp_adapter:
        missing = {name for name in missing if "mm_projector" not in name}
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, the first is {min(missing)}",
            code="missing-weights",
        )
    # An adapter's config names its base by this: the name as given, not a folder of the cache.
    model.name_or_path = model.config._name_or_path = model_args.model_name_or_path
    model.config.use_cache = False
    return model


def _quantisation(training_args: TrainingArguments) -> dict[str, object]:
    return {
        "device_map": {"": training_args.device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=training_args.bits == 4,
            load_in_8bit=training_args.bits == 8,
            llm_int8_skip_modules=UNQUANTISED,
            bnb_4bit_compute_dtype=training_args.compute_dtype,
            bnb_4bit_use_double_quant=training_args.double_quant,
            bnb_4bit_quant_type=training_args.quant_type,
        ),
    }


def set_template(model: PreTrainedModel, version: str) -> None:
    """Make config.json say which conversation template the model is trained with."""
    model.config.conversation_template = "vicuna_v1" if version in PLAIN_VERSIONS else version


def set_padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, version: str) -> None:
    """Set a padding token, which LLaMA lacks: v0 adds one if it is missing, all others use <unk>."""
    if version != "v0":
        tokenizer.pad_token = tokenizer.unk_token
    elif tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        grow_embeddings(model, len(tokenizer))


def prepare_language_model(
    model: PreTrainedModel, model_args: ModelArguments, training_args: TrainingArguments
) -> PreTrainedModel:
    """Freeze, quantize and wrap the language model with LoRA, as the flags say; return the model to train.

    The vision tower and projector are added later, so that none of this touches them.
    """
    if model_args.freeze_backbone:
        model.model.requires_grad_(False)
    # ZeRO-3 changes the shapes of weights, which the non-reentrant kind does not allow.
    training_args.set_checkpointing_kwargs({"use_reentrant": uses_zero3(training_args)})
    if training_args.bits in (4, 8):
        model = prepare_model_for_kbit_training(
            model, training_args.activation_checkpointing, training_args.checkpointing_kwargs
        )
    elif training_args.lora_enable and training_args.fp16:
        model.to(torch.float16)
    if training_args.activation_checkpointing:
        model.enable_input_require_grads()
    if not training_args.lora_enable:
        return model
    if model_args.init_adapter:
        wrapped = lora.attach_adapter(
            model, Path(model_args.init_adapter), dropout=training_args.lora_dropout
        )
    else:
        wrapped = add_new_adapter(model, training_args)
    set_casts(wrapped, training_args)
    return wrapped


def add_new_adapter(model: PreTrainedModel, training_args: TrainingArguments) -> PreTrainedModel:
    """Wrap the language model with a LoRA adapter of random weights, as the flags say."""
    bias: Any = training_args.lora_bias
    return lora.add_adapter(
        model,
        r=training_args.lora_r,
        alpha=training_args.lora_alpha,
        dropout=training_args.lora_dropout,
        bias=bias,
        targets=training_args.lora_target_modules,
        use_rslora=training_args.use_rslora,
        use_dora=training_args.use_dora,
    )


def set_casts(wrapped: PreTrainedModel, training_args: TrainingArguments) -> None:
    """Leave an adapter's casts to autocast where the recipe and the precision allow it."""
    is_fast = training_args.recipe == "fast"
    is_plain = training_args.bits == 16 and not training_args.use_dora
    if is_fast and is_plain and training_args.autocast_dtype is not None:
        lora.leave_casts_to_autocast(wrapped)


def add_vision(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Add vision tower and projector, and write to the config what loading the result needs."""
    if (
        model.get_model().mm_projector is None
        and not model_args.pretrain_mm_mlp_adapter
        and not model_args.tune_mm_mlp_adapter
        and not model_args.init_adapter
    ):
        logger.warning(
            "the projector starts from random weights: no --pretrain_mm_mlp_adapter is given, and "
            "%s has none inside; train stage 1 first, or name its result",
            model_args.model_name_or_path,
        )
    model.get_model().initialize_vision_modules(model_args=model_args)
    tower, projector = model.get_vision_tower(), model.get_model().mm_projector
    tower.to(dtype=training_args.compute_dtype, device=training_args.device)
    data_args.image_processor = tower.image_processor

    config = model.config
    config.image_aspect_ratio = data_args.image_aspect_ratio
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    config.freeze_mm_mlp_adapter = training_args.freeze_mm_mlp_adapter
    config.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    config.mm_projector_lr = training_args.mm_projector_lr

    if training_args.bits in (4, 8):
        projector.to(dtype=training_args.compute_dtype, device=training_args.device)
    choose_trained(model, tokenizer, model_args, training_args)


def choose_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    training_args: TrainingArguments,
) -> None:
    """Freeze or train the projector, and add the image tokens, as the flags say."""
    projector = model.get_model().mm_projector
    if model_args.tune_mm_mlp_adapter:
        model.requires_grad_(False)
        projector.requires_grad_(True)
    if training_args.freeze_mm_mlp_adapter:
        projector.requires_grad_(False)
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)


def set_precision(model: nn.Module, training_args: TrainingArguments) -> None:
    """Set the precision of the trained weights, and of a quantized model's norms and embeddings."""
    if training_args.bits in (4, 8):
        _set_quantized_precision(model, training_args)
    else:
        _set_trained_precision(model, training_args)


def _set_trained_precision(model: nn.Module, training_args: TrainingArguments) -> None:
    """Cast what is trained to fp32, or to the compute precision where DeepSpeed keeps fp32 master weights."""
    dtype = training_args.compute_dtype if training_args.deepspeed else torch.float32
    for parameter in model.parameters():
        # ZeRO-3's shards have their precision already.
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)


def _set_quantized_precision(model: nn.Module, training_args: TrainingArguments) -> None:
    """Cast as QLoRA does: norms to fp32; with --bf16, embeddings, head and adapter to bf16."""
    for name, module in model.named_modules():
        if "vision_tower" in name:
            continue
        if "norm" in name:
            module.to(torch.float32)
        elif training_args.bf16 and ("lora_" in name or "lm_head" in name or "embed_tokens" in name):
            weight = getattr(module, "weight", None)  # some modules have no weight
            if isinstance(weight, torch.Tensor) and weight.dtype == torch.float32:
                module.to(torch.bfloat16)
