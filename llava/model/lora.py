"""LoRA on the language model's layers: wrapping, splitting what was trained, reading it back.

Adapters never touch the vision tower or the projector, whatever is loaded when. Knows no files but theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save
from torch import nn

from llava.errors import CheckpointError
from llava.files import atomic_write, write_json
from llava.model.loading.checkpoint import ADAPTER_CONFIG, ADAPTER_FILES, find_first_file
from llava.model.loading.weights import Tensors, read_tensor_names
from llava.model.zero3 import gather_copy

logger = logging.getLogger(__name__)

Bias = Literal["none", "all", "lora_only"]

_NOT_LANGUAGE = ("vision_tower", "mm_projector", "vision_resampler")
# PEFT finds layers by the end of their names, and CLIP's attention has a q_proj too.
EXCLUDED = rf"(.*\.)?({'|'.join(_NOT_LANGUAGE)})(\..*)?"

# Keys of adapter_config.json that PEFT knows since 0.4; others are written only if they matter.
_OLD_KEYS = {
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
    ),
    *(
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
    ),
    *("revision", "target_modules", "task_type"),
}


@dataclass(frozen=True, slots=True)
class TrainedState:
    """What a LoRA run trained, on the CPU: its two files' tensors under the names they have in them."""

    adapter: Tensors
    non_lora: Tensors


def lora_targets(model: nn.Module) -> list[str]:
    """The names of the linear layers an adapter goes to: q_proj, k_proj, ... but not lm_head.

    Source: LLaVA v1.2.2 train.py, find_all_linear_names (sorted here).
    """
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in _NOT_LANGUAGE)
    }
    return sorted(names - {"lm_head"})


def add_adapter(model: Any, *, r: int, alpha: int, dropout: float = 0.0, bias: Bias = "none") -> PeftModel:
    """`model` frozen, with a trainable adapter on its language layers.

    The adapter is in float32 even where the model is in half precision: small steps would be lost there.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        target_modules=lora_targets(model),
        exclude_modules=_exclusion(model),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def split_trained_state(
    named_parameters: Iterable[tuple[str, nn.Parameter]], bias: Bias = "none"
) -> TrainedState:
    """The adapter's tensors and the other trained ones, each gathered whole if ZeRO-3 has it in parts.

    Under ZeRO-3 every process must call this.
    """
    named = list(named_parameters)
    layers = {name.split("lora_", 1)[0] for name, _ in named if "lora_" in name}
    adapter: Tensors = {}
    non_lora: Tensors = {}
    for name, parameter in named:
        if "lora_" in name:
            adapter[name.replace(".default.", ".")] = gather_copy(parameter)
            continue
        if name.endswith("bias") and _saves_bias(name, bias, layers):
            adapter[name] = gather_copy(parameter)
        if parameter.requires_grad:
            non_lora[name] = gather_copy(parameter)
    return TrainedState(adapter, non_lora)


def write_adapter(folder: Path, model: PeftModel, adapter: Tensors, dtype: torch.dtype | None = None) -> None:
    """Write `adapter_model.safetensors` and an `adapter_config.json` that PEFT since 0.4 can read.

    Args:
        folder: Made if it is not there.
        model: The wrapped model, for its settings.
        adapter: `TrainedState.adapter`.
        dtype: What the tensors are stored in; as they are if None.
    """
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in adapter.items()}
    with atomic_write(folder / ADAPTER_FILES[0], binary=True) as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    config = model.peft_config["default"]
    defaults = {each.name: getattr(LoraConfig(), each.name) for each in fields(LoraConfig)}
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if key in _OLD_KEYS or (key in defaults and value != defaults[key])
    }
    settings.pop("exclude_modules", None)  # old PEFT does not know it, and `attach_adapter` sets it
    write_json(folder / ADAPTER_CONFIG, {**settings, "inference_mode": True})


def attach_adapter(model: Any, folder: Path, *, dropout: float | None = None) -> PeftModel:
    """`model` with the adapter in `folder`, not merged.

    Args:
        model: Its base.
        folder: As `write_adapter` leaves it.
        dropout: Train the adapter further, in float32 and with this dropout; None to use it as it is.

    Raises:
        CheckpointError: The adapter is damaged, is no LoRA, or was trained on another base.
    """
    path = find_first_file(folder, ADAPTER_FILES)
    if path is None:
        raise CheckpointError(
            f"{folder}: {ADAPTER_CONFIG} is here, but neither of {', '.join(ADAPTER_FILES)}"
        )
    stored = {_plain(name) for name in read_tensor_names(path)}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise CheckpointError(f"{folder}: a {config.peft_type.value} adapter, wanted LoRA")
        config.exclude_modules = _exclusion(model)
        is_trained = dropout is not None
        config.lora_dropout = config.lora_dropout if dropout is None else dropout
        wrapped = PeftModel.from_pretrained(
            model,
            str(folder),
            config=config,
            torch_device=_device(model),
            is_trainable=is_trained,
            autocast_adapter_dtype=is_trained,
        )
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: the adapter does not fit its base: {_gist(error)}") from error
    wanted = {_plain(name) for name, _ in wrapped.named_parameters() if _is_factor(name)}
    stored = set(filter(_is_factor, stored))
    if stored != wanted:
        odd = min(stored ^ wanted)
        whose = "only the adapter has" if odd in stored else "the adapter lacks"
        raise CheckpointError(f"{folder}: the adapter does not fit its base: {whose} {odd}")
    return wrapped


def merge_adapter(wrapped: PeftModel) -> Any:
    """The base model with the adapter added into its weights."""
    return wrapped.merge_and_unload(safe_merge=True)


def _exclusion(model: nn.Module) -> str | None:
    """The pattern of what gets no adapter; None where there is none, about which PEFT warns."""
    is_there = any(part in name for part in _NOT_LANGUAGE for name, _ in model.named_modules())
    return EXCLUDED if is_there else None


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _plain(name: str) -> str:
    return name.replace(".default.", ".")


def _saves_bias(name: str, bias: Bias, layers: set[str]) -> bool:
    return bias == "all" or (
        bias == "lora_only" and name.removesuffix("base_layer.bias").removesuffix("bias") in layers
    )


def _device(model: Any) -> str:
    return str(next(model.parameters()).device)


def _gist(error: Exception) -> str:
    """The telling line of a long message: the first that names a shape, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "size mismatch" in line), lines[0])
