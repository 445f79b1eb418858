"""The flags that decide what a run learns: recorded in its checkpoints, compared when it is resumed."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llava.data.mixture import data_files
from llava.schema import JsonObject

if TYPE_CHECKING:  # arguments imports this module
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

Value = TypeVar("Value")

# The training flags that a resumed run must not change, on any number of devices.
_DECISIVE = (
    *("learning_rate", "mm_projector_lr", "weight_decay", "lr_scheduler_type", "warmup_steps", "optim"),
    *("num_train_epochs", "max_steps", "seed", "data_seed", "bf16", "fp16", "bits", "model_max_length"),
    *("lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_bias", "freeze_mm_mlp_adapter"),
    *("lora_target_modules", "use_rslora", "use_dora", "loraplus_lr_ratio"),
    *("group_by_modality_length", "group_by_length", "lr_scheduler_kwargs", "max_grad_norm"),
    *("load_best_model_at_end", "metric_for_best_model"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "quant_type", "double_quant"),
)
_PATHS = ("data_path", "model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter", "init_adapter")
WORKING_FOLDER = "working folder"


def record_settings(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> JsonObject:
    """Return the flags that decide what a run learns, as JSON values."""
    chosen = {name: getattr(training, name) for name in _DECISIVE}
    files = data_files(data.data_path or "")
    return {
        **{flag.name: getattr(model, flag.name) for flag in fields(model)},
        "data_path": _one_or_all([str(file) for file in files]),
        "held_out": data.held_out,
        "size of data_path": _one_or_all([Path(file.path).stat().st_size for file in files]),
        "image_aspect_ratio": data.image_aspect_ratio,
        "bad_samples": data.bad_samples,
        **{name: value.value if isinstance(value, Enum) else value for name, value in chosen.items()},
        "samples a step": training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * training.world_size,
        WORKING_FOLDER: str(Path.cwd()),
    }


def find_changes(then: JsonObject, now: JsonObject) -> list[str]:
    """Return the names of the settings that differ; one that was not recorded does not.

    A path differs if it is written differently and also names another file. A data file's weight is part of
    its name here.
    """
    return [
        name
        for name in now
        if name in then
        and name != WORKING_FOLDER
        and then[name] != now[name]
        and not (name in _PATHS and _is_same_file(name, then, now))
    ]


def _is_same_file(name: str, then: JsonObject, now: JsonObject) -> bool:
    if then[name] is None or now[name] is None:
        return False
    first, second = (
        [Path(side.get(WORKING_FOLDER, "."), path).resolve() for path in _as_list(side[name])]
        for side in (then, now)
    )
    return first == second


def _one_or_all(values: list[Value]) -> Value | list[Value]:
    """Return the only one, as the records of one data file have always had it, or all."""
    return values[0] if len(values) == 1 else values


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
