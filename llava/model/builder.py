"""Load a model from a full checkpoint, an adapter or a projector.

A checkpoint's files decide which of these it is, never its name.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava.errors import CheckpointError, SettingsError, one_line
from llava.model.fields import IMAGE_FIELDS, image_fields
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.llava_arch import load_projector
from llava.model.loading.checkpoint import (
    PROJECTOR_FILES,
    find_first_file,
    read_non_lora,
    read_projector,
)
from llava.model.loading.placement import (
    DeviceMap,
    Placement,
    avoid_slow_kernels,
    avoid_unsupported_kernels,
    keep_on_one_gpu,
    parse_dtype,
    plan_placement,
)
from llava.model.loading.source import Source, find_source
from llava.model.loading.weights import (
    Tensors,
    check_weight_files,
    hide_load_report,
    list_tensors,
    read_tensor_names,
    read_tensors,
    return_freed_tensors,
)
from llava.model.multimodal_encoder.builder import load_vision_tower
from llava.model.multimodal_encoder.clip_encoder import TOWER_PREFIX
from llava.model.vocabulary import add_image_tokens, grow_embeddings, load_pretrained_rows
from llava.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_LOAD_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, ImportError),
    SafetensorError,
)


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: DeviceMap = "auto",
    device: str | None = None,
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, CLIPImageProcessorPil | None, int]:
    """Load a model for inference.

    Args:
        model_path: A folder or hub id with a full model, a LoRA adapter or a projector.
        model_base: The base of an adapter or projector. None uses the base that an adapter names.
        model_name: Ignored; accepted because the original's callers pass it.
        load_8bit: Quantise to 8 bits. An adapter is then kept separate instead of being merged.
        load_4bit: Quantise to 4 bits, likewise.
        device_map: As in transformers, for several GPUs.
        device: cuda, cpu, ...; the default is cuda if there is a GPU.
        use_flash_attn: Use flash-attn if it is installed.
        kwargs: `dtype` (or `torch_dtype`), by default float16 on every device, as in the original;
            `vision_tower_dtype`, by default the model's (the newest original uses float32 on one GPU); fields
            of the model's config, such as `use_cache`; all others go to `from_pretrained`.

    Returns:
        (tokenizer, model, image processor, context length in positions). The processor is None for a plain
        language model.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
        SettingsError: The device does not exist, arguments contradict each other, or name a revision.
        TypeError: `kwargs` holds a name that `from_pretrained` does not take.
    """
    tower_dtype = parse_dtype(kwargs.pop("vision_tower_dtype", None))
    kwargs.pop("low_cpu_mem_usage", None)  # transformers 5 always saves CPU memory
    dtype = kwargs.pop("torch_dtype", None)
    placement = plan_placement(
        device=device,
        device_map=device_map,
        dtype=kwargs.pop("dtype", dtype) or torch.float16,
        load_8bit=load_8bit,
        load_4bit=load_4bit,
        use_flash_attn=use_flash_attn,
    )
    _refuse_revision(kwargs, model_path)
    source = find_source(model_path, model_base)
    fields = _take_config_fields(kwargs, source)
    avoid_slow_kernels()
    keep_on_one_gpu(placement, source.measure_weights() * placement.dtype.itemsize // 2)
    placement.arguments.update(kwargs)
    tokenizer = read_tokenizer(source)
    model = assemble_model(source, placement, tokenizer, fields)
    if source.kind == "adapter":
        from llava.model import lora  # PEFT takes seconds to import, and most models have no adapter

        # Merging into quantised weights would round the adapter away.
        model = model.get_base_model() if placement.is_quantised else lora.merge_adapter(model)
    processor = load_tower(model, source, tower_dtype or placement.dtype) if source.is_multimodal else None
    if processor is None:
        logger.info(f"{source.folder} names no vision tower: it is a plain language model")
    model.name_or_path = str(source.folder)  # transformers names an adapter's or projector's base
    return tokenizer, model.eval(), processor, read_context_length(model.config)


def load_to_rewrite(
    source: Source, placement: Placement
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel | PeftModel, CLIPImageProcessorPil | None]:
    """Load a model that is to be written again, in little memory, with an adapter attached but not merged.

    Args:
        source: The folders to read.
        placement: Of `plan_rewriting`.

    Returns:
        (tokenizer, model, image processor); the processor is None for a plain language model.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
    """
    return_freed_tensors()
    tokenizer = read_tokenizer(source)
    model = assemble_model(source, placement, tokenizer)
    if not source.is_multimodal:
        return tokenizer, model, None
    inner = model.get_base_model() if source.kind == "adapter" else model
    return tokenizer, model, load_tower(inner, source, placement.dtype)


def _refuse_revision(kwargs: Mapping[str, object], model_path: str | Path) -> None:
    # Weights of another revision would be loaded under the wanted one's name.
    if kwargs.get("revision") not in (None, "main") and not Path(model_path).expanduser().is_dir():
        raise SettingsError(
            f"{model_path}: revision {kwargs['revision']!r} is not chosen here: run `hf download "
            f"{model_path} --revision ...` and give the folder that it prints",
            code="revision",
        )


def _take_config_fields(kwargs: dict[str, object], source: Source) -> dict[str, object]:
    """Remove the fields of a multimodal model's config from `kwargs` and return them."""
    if not source.is_multimodal:
        return {}  # transformers does it
    config = LlavaConfig.from_pretrained(source.config_folder)
    names = {name for name in kwargs if hasattr(config, name) or name in IMAGE_FIELDS}
    return {name: kwargs.pop(name) for name in names - {"vocab_size"}}  # the weights decide it


def assemble_model(
    source: Source,
    placement: Placement,
    tokenizer: PreTrainedTokenizerBase,
    fields: Mapping[str, object] | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a model with all weights except the vision tower's. An adapter is attached but not merged.

    Args:
        source: The folders to read.
        placement: Device and precision.
        tokenizer: Gets the image tokens that the checkpoint was trained with.
        fields: Fields of a multimodal model's config, in place of the checkpoint's.
    """
    if not source.is_multimodal:
        if source.kind == "adapter" and any("mm_projector" in name for name in read_non_lora(source.folder)):
            raise CheckpointError(
                f"{source.folder}: was trained with images, but there is no config.json that names its "
                "vision tower: copy it from the run's output folder",
                code="missing-config",
            )
        model, missing = _read_model(AutoModelForCausalLM, source.base, placement)
        _require_complete(source, missing)
    else:
        model = _assemble_multimodal(source, placement, fields or {})
        _add_tokens(model, tokenizer)
    if source.kind != "adapter":
        return model
    from llava.model import lora

    return lora.attach_adapter(model, source.folder)


def _assemble_multimodal(
    source: Source, placement: Placement, fields: Mapping[str, object]
) -> LlavaLlamaForCausalLM:
    own, _ = LlavaConfig.get_config_dict(source.config_folder)
    config = LlavaConfig.from_dict({**own, **fields})
    config._name_or_path = str(source.config_folder)
    rows = config.vocab_size
    # The base's embedding tables are read in their own size, then grown to the rows that training added.
    config.vocab_size = LlavaConfig.from_pretrained(source.base).vocab_size
    model, missing = _read_model(LlavaLlamaForCausalLM, source.base, placement, config=config)
    grow_embeddings(model, rows)
    _require_complete(source, missing - _load_trained_weights(source, model))
    return model


def _load_trained_weights(source: Source, model: LlavaLlamaForCausalLM) -> set[str]:
    """Load a projector, or what was trained besides an adapter; return the names of the weights set."""
    if source.kind == "full":
        return set()
    if source.kind == "projector":
        path = find_first_file(source.folder, PROJECTOR_FILES)
        assert path is not None
        tensors = read_projector(path)
        load_projector(model.projector, tensors, path)
        if image_fields(model.config).mm_use_im_start_end:
            load_pretrained_rows(model, path)
        return {f"model.mm_projector.{name}" for name in tensors}
    tensors = read_non_lora(source.folder)
    _set_weights(model, tensors, source.folder)
    return set(tensors)


def _set_weights(model: PreTrainedModel, tensors: Tensors, folder: Path) -> None:
    """Copy tensors into the model's weights of the same names and shapes."""
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            has = f"has {tuple(own[name].shape)}" if name in own else "has no such weight"
            raise CheckpointError(
                f"{folder}: non_lora_trainables holds {name} {tuple(tensor.shape)}, the model {has}; give "
                "the base it was trained on",
                code="base-mismatch",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _read_model(
    model_class: type[PreTrainedModel | AutoModelForCausalLM],
    folder: Path,
    placement: Placement,
    **arguments: object,
) -> tuple[PreTrainedModel, set[str]]:
    """Return (model, names of the weights that the files lack)."""
    files = check_weight_files(folder)
    where: Path | None = folder
    try:
        if not placement.maps_files and "config" in arguments:  # transformers' Auto classes need a folder
            where, arguments["state_dict"] = None, list_tensors(files, placement.dtype)
            if (folder / "generation_config.json").is_file():
                arguments["generation_config"] = GenerationConfig.from_pretrained(folder)
        with hide_load_report():
            model, report = model_class.from_pretrained(
                where, output_loading_info=True, **placement.arguments, **arguments
            )
        model.name_or_path = model.config.name_or_path = str(folder)
    except pickle.UnpicklingError as error:
        for path in files:
            read_tensor_names(path)  # names the file, without torch's advice to run its code
        raise CheckpointError(
            f"{folder}: a file there holds more than tensors", code="unsafe-pickle"
        ) from error
    except _LOAD_ERRORS as error:
        # Callers such as lmms-eval pass other versions' arguments, and catch a TypeError to do without them.
        if isinstance(error, TypeError) and any(
            f"argument '{name}'" in str(error) for name in placement.arguments
        ):
            raise
        raise CheckpointError(
            f"{folder}: the model cannot be loaded: {one_line(error, 300)}", code="load-failed"
        ) from error
    if placement.is_quantised:
        avoid_unsupported_kernels(model)
    return model, set(report["missing_keys"])


def _require_complete(source: Source, missing: set[str]) -> None:
    if not missing:
        return
    names = sorted(missing)
    if all("mm_projector" in name or "image_newline" in name for name in names):
        raise CheckpointError(
            f"{source.folder}: the projector's weights are missing ({names[0]}, ...): neither "
            "non_lora_trainables.bin nor mm_projector.bin nor the base has them",
            code="missing-projector",
        )
    raise CheckpointError(
        f"{source.base}: {len(names)} weights are missing, the first is {names[0]}; fetch it again",
        code="missing-weights",
    )


def _add_tokens(model: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the image tokens that the checkpoint was trained with.

    The original takes a missing `mm_use_im_patch_token` as True and grows a table of 32000 rows by an
    untrained row. Here it means True only if the table has more rows than the tokenizer has tokens.
    """
    fields = image_fields(model.config)
    patch = fields.mm_use_im_patch_token
    if patch is None:
        patch = model.config.vocab_size > len(tokenizer)
    add_image_tokens(model, tokenizer, patch=patch, start_end=fields.mm_use_im_start_end)


def load_tower(
    model: LlavaLlamaForCausalLM, source: Source, dtype: torch.dtype
) -> CLIPImageProcessorPil | None:
    """Load the vision tower onto the projector's device; return its image processor."""
    fields, tower = image_fields(model.config), model.get_vision_tower()
    assert tower is not None
    load_vision_tower(tower, near=source.folders)
    if tower.hidden_size != fields.mm_hidden_size:
        raise CheckpointError(
            f"{source.config_folder}: mm_hidden_size is {fields.mm_hidden_size}, but the vision tower "
            f"{tower.vision_tower_name} has {tower.hidden_size} features; give the one used in training",
            code="tower-mismatch",
        )
    if fields.unfreeze_mm_vision_tower and source.kind == "full":
        own: Tensors = {}
        for path in check_weight_files(source.folder):
            own |= read_tensors(path, _is_tower_weight)
        tower.load_trained_weights(own, source.folder)
    weight = next(model.projector.parameters(), model.get_input_embeddings().weight)
    tower.to(device=weight.device, dtype=dtype)
    return tower.image_processor


def _is_tower_weight(name: str) -> bool:
    # Old checkpoints also hold a table of position ids there, which is not a weight.
    return TOWER_PREFIX in name and not name.endswith("position_ids")


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer: LLaMA's slow one, or for another language model whatever it has."""
    folder = source.tokenizer_folder
    if source.is_multimodal or (folder / "tokenizer.model").is_file():
        return load_tokenizer(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return tokenizer
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"{folder}: no tokenizer that can be loaded", code="missing-tokenizer"
        ) from error


def read_context_length(config: PretrainedConfig) -> int:
    """Return how many positions the model reads, images included."""
    # The original falls back to 2048 first, which cuts prompts that Vicuna-1.5 can read.
    length = getattr(config, "max_sequence_length", None) or getattr(config, "max_position_embeddings", None)
    return int(length or 2048)
