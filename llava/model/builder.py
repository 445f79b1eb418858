"""Loading a model from whatever a folder or hub id holds: all of it, an adapter, or a projector over a base.

What it is, is told from its files and never from its name.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava.errors import CheckpointError
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.llava_arch import load_projector
from llava.model.loading.checkpoint import (
    PROJECTOR_FILES,
    find_first_file,
    read_non_lora,
    read_projector,
)
from llava.model.loading.placement import Placement, avoid_unsupported_kernels, parse_dtype, plan_placement
from llava.model.loading.source import Source, find_source
from llava.model.loading.weights import (
    Tensors,
    check_weight_files,
    hide_load_report,
    read_tensor_names,
    read_tensors,
)
from llava.model.multimodal_encoder.clip_encoder import TOWER_PREFIX
from llava.model.vocabulary import add_image_tokens, grow_embeddings, load_pretrained_rows
from llava.tokenizer import load_tokenizer

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
    device_map: Any = "auto",
    device: str | None = None,
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a model for use.

    Args:
        model_path: A folder or hub id with a whole model, a LoRA adapter, or a projector.
        model_base: The language model under an adapter or projector; an adapter's own note of it if None.
        model_name: Taken for the sake of the original's callers; files decide.
        load_8bit: Quantise to 8 bits. An adapter is then kept beside the weights, not merged into them.
        load_4bit: Likewise, 4 bits.
        device_map: As in transformers, for several GPUs.
        device: cuda, cpu, ...; cuda if there is one by default.
        use_flash_attn: Use flash-attn if it is installed.
        kwargs: `dtype` (or `torch_dtype`), `vision_tower_dtype` (the model's by default; float32 is what the
            newest original does on one GPU); all else goes to `from_pretrained`.

    Returns:
        (tokenizer, model, image processor, positions the model reads). The processor is None for a model of
        text alone.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
        SettingsError: The device is not there, or settings exclude each other.
    """
    tower_dtype = parse_dtype(kwargs.pop("vision_tower_dtype", None))
    kwargs.pop("low_cpu_mem_usage", None)  # transformers 5 always does
    dtype = kwargs.pop("torch_dtype", None)
    placement = plan_placement(
        device=device,
        device_map=device_map,
        dtype=kwargs.pop("dtype", dtype),
        load_8bit=load_8bit,
        load_4bit=load_4bit,
        use_flash_attn=use_flash_attn,
    )
    placement.settings.update(kwargs)
    source = find_source(model_path, model_base)
    tokenizer = read_tokenizer(source)
    model = assemble_model(source, placement, tokenizer)
    if source.kind == "adapter":
        from llava.model import lora  # PEFT takes seconds to import, and most models have no adapter

        # Merged into quantised weights an adapter would be rounded away; it stays beside them.
        model = model.get_base_model() if placement.is_quantised else lora.merge_adapter(model)
    processor = load_tower(model, source, tower_dtype or placement.dtype) if source.is_multimodal else None
    if processor is None:
        logger.info(f"{source.folder} names no vision tower: it is a language model without images")
    return tokenizer, model.eval(), processor, _context_length(model.config)


def assemble_model(source: Source, placement: Placement, tokenizer: Any) -> Any:
    """The model with all its weights but the tower's; with an adapter, a PeftModel that is not merged yet.

    Args:
        source: Where the parts lie.
        placement: Where they go.
        tokenizer: Gets the tokens that the checkpoint was trained with.
    """
    if not source.is_multimodal:
        if source.kind == "adapter" and any("mm_projector" in name for name in read_non_lora(source.folder)):
            raise CheckpointError(
                f"{source.folder}: was trained with images, but there is no config.json that names its "
                "vision tower: copy it from the run's output folder"
            )
        model, missing = _read(AutoModelForCausalLM, source.base, placement)
        _require_complete(source, missing)
    else:
        model = _assemble_multimodal(source, placement)
        _add_tokens(model, tokenizer)
    if source.kind != "adapter":
        return model
    from llava.model import lora

    return lora.attach_adapter(model, source.folder)


def _assemble_multimodal(source: Source, placement: Placement) -> Any:
    config = LlavaConfig.from_pretrained(source.config_folder)
    config._name_or_path = str(source.config_folder)
    rows = config.vocab_size
    # A base's tables are read as they are, and grown to the rows that training added.
    config.vocab_size = LlavaConfig.from_pretrained(source.base).vocab_size
    model, missing = _read(LlavaLlamaForCausalLM, source.base, placement, config=config)
    grow_embeddings(model, rows)
    _require_complete(source, missing - _set_trained_parts(source, model))
    return model


def _set_trained_parts(source: Source, model: Any) -> set[str]:
    """Put in what was trained beside an adapter, or the projector; the names of the weights that were set."""
    if source.kind == "full":
        return set()
    if source.kind == "projector":
        path = find_first_file(source.folder, PROJECTOR_FILES)
        assert path is not None
        tensors = read_projector(path)
        load_projector(model.get_model().mm_projector, tensors, path)
        if model.config.mm_use_im_start_end:
            load_pretrained_rows(model, path)
        return {f"model.mm_projector.{name}" for name in tensors}
    tensors = read_non_lora(source.folder)
    _set_weights(model, tensors, source.folder)
    return set(tensors)


def _set_weights(model: Any, tensors: Tensors, folder: Path) -> None:
    """Set some of the model's weights, all of which it must have in the same shape."""
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            has = f"has {tuple(own[name].shape)}" if name in own else "has no such weight"
            raise CheckpointError(
                f"{folder}: non_lora_trainables holds {name} {tuple(tensor.shape)}, the model {has}; give "
                "the base it was trained on"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _read(kind: Any, folder: Path, placement: Placement, **settings: Any) -> tuple[Any, set[str]]:
    """(model, names of weights the files did not have)."""
    files = check_weight_files(folder)
    try:
        with hide_load_report():
            model, report = kind.from_pretrained(
                folder, output_loading_info=True, **placement.settings, **settings
            )
    except pickle.UnpicklingError as error:
        for path in files:
            read_tensor_names(path)  # says which file it is, without torch's advice to run it
        raise CheckpointError(f"{folder}: a file there holds more than tensors") from error
    except _LOAD_ERRORS as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: the model cannot be loaded: {said}") from error
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
            "non_lora_trainables.bin nor mm_projector.bin nor the base has them"
        )
    raise CheckpointError(
        f"{source.base}: {len(names)} weights are missing, the first is {names[0]}; fetch it again"
    )


def _add_tokens(model: Any, tokenizer: Any) -> None:
    """The image tokens a checkpoint was trained with.

    A config without `mm_use_im_patch_token` means True to the original, which then grows a table of 32000
    rows by one untrained row; here it means True only if the table has more rows than the tokenizer
    has tokens.
    """
    config = model.config
    patch = config.mm_use_im_patch_token
    if patch is None:
        patch = config.vocab_size > len(tokenizer)
    add_image_tokens(model, tokenizer, patch=patch, start_end=config.mm_use_im_start_end)


def load_tower(model: Any, source: Source, dtype: torch.dtype) -> Any:
    """Load the tower beside the projector; the image processor."""
    tower = model.get_vision_tower()
    tower.load_model(near=source.folders)
    if tower.hidden_size != model.config.mm_hidden_size:
        raise CheckpointError(
            f"{source.config_folder}: mm_hidden_size is {model.config.mm_hidden_size}, but the vision tower "
            f"{tower.vision_tower_name} has {tower.hidden_size} features: it is another one than in training"
        )
    if model.config.unfreeze_mm_vision_tower and source.kind == "full":
        own: Tensors = {}
        for path in check_weight_files(source.folder):
            own |= read_tensors(path, _is_of_tower)
        tower.load_trained_weights(own, source.folder)
    weight = next(model.get_model().mm_projector.parameters(), model.get_input_embeddings().weight)
    tower.to(device=weight.device, dtype=dtype)
    return tower.image_processor


def _is_of_tower(name: str) -> bool:
    # Old checkpoints hold a table of positions there, which is no weight.
    return TOWER_PREFIX in name and not name.endswith("position_ids")


def read_tokenizer(source: Source) -> Any:
    """The tokenizer that belongs to a model: LLaMA's, or for another language model whatever it has."""
    folder = source.tokenizer_folder
    if source.is_multimodal or (folder / "tokenizer.model").is_file():
        return load_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{folder}: no tokenizer that can be loaded") from error


def _context_length(config: Any) -> int:
    """Positions the model reads, images included."""
    # The original's fallback of 2048 cut prompts that Vicuna-1.5 reads whole.
    named = getattr(config, "max_sequence_length", None) or getattr(config, "max_position_embeddings", None)
    return int(named or 2048)
