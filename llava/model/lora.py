"""Add LoRA to the language model's layers, and save, load and merge adapters.

An adapter never covers the vision tower or the projector, in whatever order they are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel

from llava.errors import CheckpointError, SettingsError
from llava.files import atomic_write, write_json
from llava.model.loading.checkpoint import ADAPTER_CONFIG, ADAPTER_FILES, find_first_file
from llava.model.loading.weights import Tensors, read_tensor_names
from llava.model.sharded import gather_copy

logger = logging.getLogger(__name__)

Bias = Literal["none", "all", "lora_only"]

_MAGNITUDE = "lora_magnitude_vector"
_NOT_LANGUAGE = ("vision_tower", "mm_projector", "vision_resampler")
# PEFT matches the end of a layer's name, and CLIP's attention has a q_proj too.
EXCLUDED = rf"(.*\.)?({'|'.join(_NOT_LANGUAGE)})(\..*)?"

# Keys of adapter_config.json that PEFT 0.4 knows; others are written only if they are not the default.
_OLD_KEYS = {
    *("auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "r", "revision"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("modules_to_save", "peft_type", "target_modules", "task_type"),
}


@dataclass(frozen=True, slots=True)
class TrainedState:
    """What a LoRA run trained, on the CPU: the tensors of its two files, keyed as in the files."""

    adapter: Tensors
    non_lora: Tensors


def lora_targets(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that get an adapter: q_proj, k_proj, ... but not lm_head.

    Source: LLaVA v1.2.2 train.py, find_all_linear_names (sorted here).
    """
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(other in name for other in _NOT_LANGUAGE)
    }
    return sorted(names - {"lm_head"})


def add_adapter(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    bias: Bias = "none",
    targets: Sequence[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> PeftModel:
    """Freeze `model` and add a trainable adapter to its language layers.

    The adapter is in float32 even if the model is in half precision, which would round small updates away.

    Args:
        model: The base.
        r: The adapter's rank.
        alpha: Its output is multiplied by alpha / r, or by alpha / sqrt(r) with `use_rslora`.
        dropout: Of its inputs.
        bias: Which biases are trained.
        targets: The layers that get one, among `lora_targets`; None for all.
        use_rslora: Scale by the square root of the rank (arXiv:2312.03732).
        use_dora: Also learn the length of each row of the weights (arXiv:2402.09353).

    Raises:
        SettingsError: There is no such layer.
    """
    known = lora_targets(model)
    if unknown := [name for name in targets or () if name not in known]:
        raise SettingsError(
            f"--lora_target_modules {unknown[0]}: no such linear layer; there are {', '.join(known)}",
            code="unknown-layer",
        )
    config = LoraConfig(
        use_rslora=use_rslora,
        use_dora=use_dora,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        target_modules=list(targets or known),
        exclude_modules=_find_exclusion(model),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def leave_casts_to_autocast(model: nn.Module, *, leaves: bool = True) -> None:
    """Keep PEFT from casting each adapter's inputs to float32, where autocast casts them back.

    Losses and gradients have the same bits, but dropout draws other numbers for another precision.

    Args:
        model: A model with adapters.
        leaves: False lets PEFT cast them again.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = not leaves


def split_trained_state(
    named_parameters: Iterable[tuple[str, nn.Parameter]], bias: Bias = "none"
) -> TrainedState:
    """Copy the adapter's tensors and the other trained ones to the CPU.

    Under ZeRO-3 every rank must call this.
    """
    named = list(named_parameters)
    layers = {name.split("lora_", 1)[0] for name, _ in named if "lora_" in name}
    adapter: Tensors = {}
    non_lora: Tensors = {}
    for name, parameter in named:
        if "lora_" in name:
            adapter[_stored_name(name)] = gather_copy(parameter)
            continue
        if name.endswith("bias") and _saves_bias(name, bias, layers):
            adapter[name] = gather_copy(parameter)
        if parameter.requires_grad:
            non_lora[name] = gather_copy(parameter)
    return TrainedState(adapter, non_lora)


def write_adapter(folder: Path, model: PeftModel, adapter: Tensors, dtype: torch.dtype | None = None) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, in a form that PEFT 0.4 and later load.

    Args:
        folder: Where to write; created if it does not exist.
        model: The wrapped model, for its adapter's config.
        adapter: The LoRA weights by their names in the file.
        dtype: The dtype to store the tensors in; None keeps theirs.
    """
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in adapter.items()}
    with atomic_write(folder / ADAPTER_FILES[0], binary=True) as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    config = model.peft_config["default"]
    default = LoraConfig()
    defaults = {field.name: getattr(default, field.name) for field in fields(LoraConfig)}
    saved = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if key in _OLD_KEYS or (key in defaults and value != defaults[key])
    }
    saved.pop("exclude_modules", None)  # PEFT 0.4 does not know it, and `attach_adapter` sets it
    write_json(folder / ADAPTER_CONFIG, {**saved, "inference_mode": True})


def attach_adapter(model: PreTrainedModel, folder: Path, *, dropout: float | None = None) -> PeftModel:
    """Wrap `model` with the adapter in `folder`, without merging it.

    Args:
        model: The adapter's base.
        folder: A folder that `write_adapter` or PEFT wrote.
        dropout: The dropout to train the adapter further with, in float32; None to use it without training.

    Raises:
        CheckpointError: The adapter is damaged, is not LoRA, or was trained on another base.
    """
    path = find_first_file(folder, ADAPTER_FILES)
    if path is None:
        raise CheckpointError(
            f"{folder}: {ADAPTER_CONFIG} is here, but neither of {', '.join(ADAPTER_FILES)}",
            code="missing-weights",
        )
    stored = {_stored_name(name) for name in read_tensor_names(path)}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise CheckpointError(
                f"{folder}: a {config.peft_type.value} adapter, wanted LoRA", code="not-lora"
            )
        config.exclude_modules = _find_exclusion(model)
        is_trained = dropout is not None
        config.lora_dropout = config.lora_dropout if dropout is None else dropout
        wrapped = PeftModel.from_pretrained(
            model,
            str(folder),
            config=config,
            torch_device=str(next(model.parameters()).device),
            is_trainable=is_trained,
            autocast_adapter_dtype=is_trained,
        )
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{folder}: the adapter does not fit its base: {_summarize(error)}", code="adapter-mismatch"
        ) from error
    expected = {_stored_name(name) for name, _ in wrapped.named_parameters() if _is_of_adapter(name)}
    stored = set(filter(_is_of_adapter, stored))
    if stored != expected:
        name = min(stored ^ expected)
        whose = "only the adapter has" if name in stored else "the adapter lacks"
        raise CheckpointError(
            f"{folder}: the adapter does not fit its base: {whose} {name}", code="adapter-mismatch"
        )
    return wrapped


def merge_adapter(wrapped: PeftModel) -> PreTrainedModel:
    """Add the adapter into the base model's weights and return the base model."""
    base: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    return base


def _find_exclusion(model: nn.Module) -> str | None:
    """Return the pattern of layers without an adapter; None if no layer matches, as PEFT would warn."""
    matches = any(other in name for other in _NOT_LANGUAGE for name, _ in model.named_modules())
    return EXCLUDED if matches else None


def _is_of_adapter(name: str) -> bool:
    """Return whether a tensor is LoRA's A or B, or DoRA's lengths."""
    return any(part in name for part in (".lora_A.", ".lora_B.", f".{_MAGNITUDE}"))


def _stored_name(name: str) -> str:
    """Return a parameter's name in PEFT's files, where DoRA's lengths lack the `.weight` of their modules."""
    return name.replace(".default.", ".").replace(f"{_MAGNITUDE}.weight", _MAGNITUDE)


def _saves_bias(name: str, bias: Bias, layers: set[str]) -> bool:
    return bias == "all" or (
        bias == "lora_only" and name.removesuffix("base_layer.bias").removesuffix("bias") in layers
    )


def _summarize(error: Exception) -> str:
    """Return the most useful line of a long message: the first that names a shape, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "size mismatch" in line), lines[0])
