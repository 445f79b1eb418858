"""`--init_adapter`: train an existing adapter and its projector further, on new data with a new optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from llava.errors import CheckpointError, SettingsError
from llava.model.loading.checkpoint import ADAPTER_CONFIG, read_json_object, read_non_lora, strip_wrappers
from llava.model.loading.locate import locate
from llava.model.sharded import gather_parameters

if TYPE_CHECKING:  # arguments imports this module
    from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)

# Flags that must equal the adapter's: (flag, key in adapter_config.json, what it means if the key is absent).
_SHAPE = (
    *(("lora_r", "r", None), ("lora_alpha", "lora_alpha", None), ("lora_bias", "bias", None)),
    *(("use_rslora", "use_rslora", False), ("use_dora", "use_dora", False)),
)


def adapter_mismatches(folder: Path, training_args: TrainingArguments) -> Iterator[str]:
    """Yield one message per flag that contradicts the adapter's config, or one if there is no adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        yield f"--init_adapter {folder}: no {ADAPTER_CONFIG} there; wanted a LoRA run or its checkpoint-N"
        return
    try:
        own = read_json_object(folder / ADAPTER_CONFIG)
    except CheckpointError as error:
        yield str(error)
        return
    for flag, name, absent in _SHAPE:
        asked, found = getattr(training_args, flag), own.get(name, absent)
        if found != asked:
            yield f"--{flag} {asked}: the adapter in {folder} has {found}; use that value"


def locate_adapter(name: str, model_name_or_path: str, training_args: TrainingArguments) -> Path:
    """Return the folder of the adapter that `--init_adapter` names, downloaded if it is a hub id.

    Raises:
        SettingsError: The flags contradict the adapter's config.
    """
    folder = locate(name, what="--init_adapter")
    problems = list(adapter_mismatches(folder, training_args))
    if problems:
        raise SettingsError("; ".join(problems), code="contradicts-adapter")
    base = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if base and Path(base).name != Path(model_name_or_path).name:
        logger.warning("%s: was trained on %s, and is now trained on %s", folder, base, model_name_or_path)
    return folder


def set_trained_beside(model: PreTrainedModel, folder: Path) -> None:
    """Load what was trained beside the adapter: the projector, and embeddings if image tokens were added.

    Raises:
        CheckpointError: The projector is missing or does not fit the model.
    """
    stored = read_non_lora(folder)
    own = {strip_wrappers(name): parameter for name, parameter in model.named_parameters()}
    lacking = {name for name in own if "mm_projector" in name} - set(stored)
    if lacking:
        raise CheckpointError(
            f"{folder}: lacks {min(lacking)}: an adapter is trained further with its projector; wanted "
            "non_lora_trainables.bin beside it, with all of the projector's weights",
            code="missing-projector",
        )
    unknown = set(stored) - set(own)
    if unknown:
        raise CheckpointError(
            f"{folder}: holds {min(unknown)}, which this model does not have", code="wrong-weights"
        )
    with torch.no_grad(), gather_parameters([own[name] for name in stored], to_change=True):
        for name, tensor in stored.items():
            if tensor.shape != own[name].shape:
                found, wanted = tuple(tensor.shape), tuple(own[name].shape)
                raise CheckpointError(
                    f"{folder}: {name} has shape {found}, this model's has {wanted}", code="wrong-weights"
                )
            own[name].copy_(tensor)
