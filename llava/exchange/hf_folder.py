"""Write any model that we load as a `LlavaForConditionalGeneration` folder, and turn such a folder back.

Source of names, config fields and processor settings: the folder llava-hf/llava-1.5-7b-hf.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import LlavaConfig as HfLlavaConfig

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.errors import CheckpointError, one_line
from llava.exchange.chat_template import make_chat_template
from llava.exchange.names import from_hf, to_hf
from llava.exchange.tokenizer_file import make_fast_tokenizer
from llava.files import write_json
from llava.infer.engine.requests import ModelChoice
from llava.infer.jobs.prompting import template_for_chat
from llava.model import lora
from llava.model.builder import load_to_rewrite
from llava.model.card import write_card
from llava.model.fields import IMAGE_FIELDS, image_fields
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.checkpoint import ADAPTER_FILES, read_config, read_json_object
from llava.model.loading.locate import locate
from llava.model.loading.placement import plan_rewriting
from llava.model.loading.source import find_source
from llava.model.loading.weights import Tensors, check_weight_files, read_tensors
from llava.model.merge import new_model_folder
from llava.schema import JsonObject
from llava.scoring.metrics import read_scores
from llava.tokenizer import CONFIG_FILE, VOCAB_FILE, LlamaSentencePieceTokenizer

logger = logging.getLogger(__name__)

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_SELECTIONS = {"patch": "default", "cls_patch": "full"}  # ours: theirs
_NOT_SHARED = ("_name_or_path", "conversation_template")  # paths of this machine; ours alone
_TOWER_FOLDER = "vision_tower"
_ADAPTER_FOLDER = "adapter"
_PREPROCESSOR = "preprocessor_config.json"
_TOWER_NAME = "model.vision_tower.vision_tower."


def export_hf(
    model_path: str,
    model_base: str | None,
    output: Path,
    *,
    dtype: str = "float16",
    conv_mode: str | None = None,
    keep_adapter: bool = False,
    scores: Sequence[Path] = (),
) -> None:
    """Write a model as a folder that transformers, vLLM and SGLang read.

    Args:
        model_path: A full model, an adapter or a projector, as for `load_pretrained_model`.
        model_base: The base of an adapter or projector; None uses the one that an adapter names.
        output: A folder that does not exist yet or is empty.
        dtype: The precision of the weights.
        conv_mode: The conversation template of the chat template; None for the model's own.
        keep_adapter: Write an adapter for PEFT into the folder's `adapter`, instead of merging it. What was
            trained besides it, such as the projector, is in the model.
        scores: The metrics.json files, or their folders, that the model card shows.

    Raises:
        CheckpointError: The model has a part that the format has no place for, or `output` exists.
        DataError: A metrics.json is missing or damaged.
    """
    shown = [*map(read_scores, scores)]
    with new_model_folder(output) as folder:
        source = find_source(model_path, model_base)
        if keep_adapter and (source.kind != "adapter" or not source.is_multimodal):
            raise CheckpointError(
                f"{source.folder}: holds no adapter of a LLaVA model, so there is none to keep",
                code="not-an-adapter",
            )
        slow, model, processor = load_to_rewrite(source, plan_rewriting(dtype))
        if keep_adapter:
            model = _split_adapter(model, folder)
        elif source.kind == "adapter":
            model = lora.merge_adapter(model)
        if processor is None:
            raise CheckpointError(
                f"{model_path}: is a language model without images: transformers reads it as it is",
                code="not-multimodal",
            )
        _require_exportable(model, model_path)
        choice = ModelChoice(model_path, model_base)
        template = template_for_chat(conv_mode, model.config, choice)
        tokenizer = make_fast_tokenizer(slow)
        tokenizer.chat_template = make_chat_template(conv_templates[template])
        image_token = int(tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN))
        tensors = _with_rows(model.state_dict(), image_token + 1)
        rows = tensors[_EMBEDDINGS[0]].shape[0]

        _hf_config(model, rows, image_token, template).save_pretrained(folder)
        GenerationConfig(
            bos_token_id=slow.bos_token_id,
            eos_token_id=slow.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        _save_processor(folder, model, processor, tokenizer)
        slow.save_vocabulary(str(folder))  # what `llava import` reads
        save_torch_state_dict(to_hf(tensors), folder, max_shard_size="5GB")
        write_card(folder, source, scores=shown, library="transformers")
    logger.info(f"{output}: exported with template {template}; {DEFAULT_IMAGE_TOKEN} is token {image_token}")


def import_hf(model_path: str, output: Path, *, tokenizer: str | None = None) -> None:
    """Turn a `LlavaForConditionalGeneration` folder into the original's format, with its vision tower.

    Args:
        model_path: A folder or hub id, such as llava-hf/llava-1.5-7b-hf, or what `export_hf` wrote.
        output: A folder that does not exist yet or is empty. The tower is in its folder `vision_tower`.
        tokenizer: A folder or hub id with the language model's `tokenizer.model`; None for `model_path`.

    Raises:
        CheckpointError: The folder is of another format, misses files, or `output` exists.
    """
    source = locate(model_path)
    config = _read_hf_config(source)
    slow = _read_slow_tokenizer(source, tokenizer)
    with new_model_folder(output) as folder:
        tensors: Tensors = {}
        for path in check_weight_files(source):
            tensors |= from_hf(read_tensors(path))
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TOWER_NAME)}
        tower = {name.removeprefix(_TOWER_NAME): tensors[name] for name in tensors.keys() - own.keys()}
        if config.text_config.tie_word_embeddings:
            own.setdefault(_EMBEDDINGS[1], own[_EMBEDDINGS[0]])
        for name in own.keys() & set(_EMBEDDINGS):
            own[name] = own[name][: len(slow)].clone()

        own_config = _own_config(config, read_config(source), len(slow))
        _require_complete(own_config, own, source)
        own_config.save_pretrained(folder)
        slow.save_pretrained(str(folder))
        save_torch_state_dict(own, folder, max_shard_size="5GB")

        place = folder / _TOWER_FOLDER
        place.mkdir()
        config.vision_config.save_pretrained(place)
        _read_image_processor(source).save_pretrained(place)
        save_torch_state_dict(tower, place)
    logger.info(f"{output}: imported; images are padded to a square, as LLaVA-1.5 was trained")


def _split_adapter(wrapped: PeftModel, folder: Path) -> PreTrainedModel:
    """Return a model without its adapter, which is written to `folder` for PEFT."""
    config = wrapped.peft_config["default"]
    layers = "|".join(sorted(config.target_modules))
    config.target_modules = rf".*language_model\..*\.({layers})"  # the tower's layers have these names too
    config.exclude_modules = None
    config.base_model_name_or_path = None  # it is the folder above
    config.save_pretrained(str(folder / _ADAPTER_FOLDER))
    own, theirs = "base_model.model.model.", "base_model.model.model.language_model."
    tensors = get_peft_model_state_dict(wrapped)
    save_file(
        {name.replace(own, theirs, 1): tensor.contiguous() for name, tensor in tensors.items()},
        folder / _ADAPTER_FOLDER / ADAPTER_FILES[0],
        metadata={"format": "pt"},
    )
    base: PreTrainedModel = wrapped.unload()
    return base


def _require_exportable(model: LlavaLlamaForCausalLM, name: str) -> None:
    """Raise a `CheckpointError` if the model has a part that transformers' LLaVA lacks."""
    fields = image_fields(model.config)
    wanted = {
        "mm_projector_type": (fields.mm_projector_type, ("mlp2x_gelu",)),
        "image_aspect_ratio": (fields.image_aspect_ratio, ("pad", "square", None)),
        "mm_patch_merge_type": (fields.mm_patch_merge_type, ("flat", None)),
        "mm_use_im_start_end": (bool(fields.mm_use_im_start_end), (False,)),
    }
    for field, (found, allowed) in wanted.items():
        if found not in allowed:
            raise CheckpointError(
                f"{name}: {field} is {found!r}; transformers' LLaVA has no such part",
                code="not-exportable",
            )


def _with_rows(tensors: Tensors, rows: int) -> Tensors:
    """Return the tensors with embedding tables of at least `rows` rows.

    A new row is a copy of the first, so that its logit is never the only largest: greedy answers stay the
    same, as of equal logits the first counts.
    """
    grown = dict(tensors)
    for name in _EMBEDDINGS:
        table = tensors[name]
        grown[name] = torch.cat([table, table[:1].expand(max(0, rows - len(table)), -1)])
    return grown


def _hf_config(model: LlavaLlamaForCausalLM, rows: int, image_token: int, template: str) -> HfLlavaConfig:
    tower = model.get_vision_tower()
    assert tower is not None
    own = {name: value for name, value in model.config.to_dict().items() if name not in IMAGE_FIELDS}
    own |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows}
    text = LlamaConfig.from_dict({name: own[name] for name in own if name not in _NOT_SHARED})
    rope = text.rope_parameters or {}
    if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:
        text.rope_theta = rope["rope_theta"]  # where transformers 4 looks for it
    seen = tower.config.to_dict()
    vision = CLIPVisionConfig.from_dict({name: seen[name] for name in seen if name not in _NOT_SHARED})
    config = HfLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=tower.select_layer,
        vision_feature_select_strategy=_SELECTIONS[tower.select_feature],
        image_seq_length=model.image_positions,
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=model.dtype,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.conversation_template = template
    return config


def _save_processor(
    folder: Path,
    model: LlavaLlamaForCausalLM,
    images: CLIPImageProcessorPil,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write tokenizer, chat template and image processor, in the files that old and new readers look for."""
    tower = model.get_vision_tower()
    assert tower is not None
    tokenizer.save_pretrained(str(folder))
    written = read_json_object(folder / CONFIG_FILE)
    written.pop("backend", None)  # transformers 5's names, which 4 does not know
    write_json(folder / CONFIG_FILE, written | {"tokenizer_class": "PreTrainedTokenizerFast"})
    settings = images.to_dict()
    settings |= {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_pad": image_fields(model.config).image_aspect_ratio == "pad",
    }
    write_json(folder / _PREPROCESSOR, settings)
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": DEFAULT_IMAGE_TOKEN,
            "patch_size": tower.config.patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": _SELECTIONS[tower.select_feature],
        },
    )


def _read_hf_config(folder: Path) -> HfLlavaConfig:
    fields = read_config(folder)
    if fields.get("model_type") != "llava" or "text_config" not in fields:
        raise CheckpointError(
            f"{folder}: config.json has model_type {fields.get('model_type')!r}; wanted a folder of "
            "transformers' LlavaForConditionalGeneration, such as llava-hf/llava-1.5-7b-hf",
            code="not-huggingface-format",
        )
    config = HfLlavaConfig.from_pretrained(folder)
    wanted = {
        "text_config.model_type": (config.text_config.model_type, "llama"),
        "vision_config.model_type": (config.vision_config.model_type, "clip_vision_model"),
        "projector_hidden_act": (config.projector_hidden_act, "gelu"),
        "vision_feature_layer": (type(config.vision_feature_layer), int),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise CheckpointError(
                f"{folder}: config.json has {name} {found!r}, wanted {needed!r}", code="not-importable"
            )
    return config


def _own_config(config: HfLlavaConfig, fields: JsonObject, rows: int) -> LlavaConfig:
    selections = {theirs: ours for ours, theirs in _SELECTIONS.items()}
    own = LlavaConfig.from_dict({**config.text_config.to_dict(), "model_type": LlavaConfig.model_type})
    own.vocab_size = rows
    own.architectures = [LlavaLlamaForCausalLM.__name__]
    own.mm_vision_tower = _TOWER_FOLDER
    own.mm_hidden_size = config.vision_config.hidden_size
    own.mm_projector_type = "mlp2x_gelu"
    own.mm_vision_select_layer = config.vision_feature_layer
    own.mm_vision_select_feature = selections[config.vision_feature_select_strategy]
    own.mm_patch_merge_type = "flat"
    own.mm_use_im_start_end = own.mm_use_im_patch_token = False
    own.use_mm_proj = True
    own.image_aspect_ratio = "pad"
    if fields.get("conversation_template") in conv_templates:
        own.conversation_template = fields["conversation_template"]
    return own


def _require_complete(config: LlavaConfig, tensors: Tensors, source: Path) -> None:
    with torch.device("meta"):
        wanted = LlavaLlamaForCausalLM(config).state_dict()
    for name, tensor in wanted.items():
        if name.startswith(_TOWER_NAME):
            continue
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != tuple(tensor.shape):
            raise CheckpointError(
                f"{source}: found {found} for {name}, wanted {tuple(tensor.shape)}; fetch it again",
                code="missing-weights",
            )


def _read_slow_tokenizer(source: Path, named: str | None) -> LlamaSentencePieceTokenizer:
    """Return the language model's tokenizer, without the image and padding tokens that llava-hf adds."""
    folder = source if named is None else locate(named, what="tokenizer")
    if not (folder / VOCAB_FILE).is_file():
        raise CheckpointError(
            f"{folder}: has no {VOCAB_FILE}, which gives the original's ids; name the language model's with "
            "--tokenizer, such as lmsys/vicuna-7b-v1.5",
            code="missing-tokenizer",
        )
    settings = read_json_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    return LlamaSentencePieceTokenizer(
        str(folder / VOCAB_FILE),
        legacy=settings.get("legacy"),
        pad_token="<unk>",
        model_max_length=settings.get("model_max_length"),
        padding_side="right",
    )


def _read_image_processor(source: Path) -> CLIPImageProcessorPil:
    path = source / _PREPROCESSOR
    if path.is_file():
        settings = read_json_object(path)
    else:  # transformers 5 writes one file for both
        settings = read_json_object(source / "processor_config.json").get("image_processor", {})
    try:
        return CLIPImageProcessorPil(
            **{
                name: value
                for name, value in settings.items()
                if name.startswith(
                    ("do_", "image_mean", "image_std", "size", "crop_size", "resample", "rescale")
                )
                and name != "do_pad"
            }
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}", code="bad-preprocessor") from error
