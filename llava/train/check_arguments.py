"""Check the training flags before any weight is read: ranges, contradictions, missing files and packages."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Trainer, get_scheduler
from transformers.training_args import OptimizerNames

from llava.data.mixture import data_file_problems
from llava.errors import one_line
from llava.model.multimodal_projector.builder import is_projector_type
from llava.schema import POLICIES
from llava.train.init_adapter import adapter_mismatches
from llava.train.step.recipe import recipe_problems
from llava.train.supported import unsupported

if TYPE_CHECKING:  # arguments imports this module
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

BIASES = ("none", "all", "lora_only")
ASPECT_RATIOS = ("square", "pad")
_CHOICES = {
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "mm_patch_merge_type": ("flat", "spatial", "spatial_unpad"),
}
# Values of --resume_from_checkpoint that name no folder, and what each means.
RESUME = {"auto": "auto", "true": "auto", "never": "never", "false": "never"}

# What numeric flags may be: a test, its wording, and the flags. A flag that is not given may be None.
_RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (
        lambda value: value > 0,
        "more than 0",
        (
            *("num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps"),
            "ddp_timeout",
        ),
    ),
    (
        lambda value: value >= 1,
        "1 or more",
        (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "lora_r", "lora_alpha"),
            *("dataloader_prefetch_factor", "torch_empty_cache_steps", "eval_accumulation_steps"),
            "ddp_bucket_cap_mb",
        ),
    ),
    (
        lambda value: value >= 0,
        "0 or more",
        (
            *("learning_rate", "mm_projector_lr", "weight_decay", "max_grad_norm", "warmup_steps"),
            *("save_total_limit", "save_minutes"),
            *("dataloader_num_workers", "neftune_noise_alpha", "eval_delay", "micro_batch_tokens"),
        ),
    ),
    (lambda value: 0 <= value <= 1, "0 to 1", ("warmup_ratio",)),
    (lambda value: 0 <= value < 1, "0 to less than 1", ("lora_dropout", "adam_beta1", "adam_beta2")),
    (lambda value: value == -1 or value >= 1, "1 or more, or -1 to go by epochs", ("max_steps",)),
    (lambda value: value >= 2, "2 or more", ("model_max_length",)),
    (lambda value: value >= 1, "1 or more", ("loraplus_lr_ratio",)),
    (lambda value: 0 <= value < 2**32, "0 to 4294967295", ("seed", "data_seed")),
)


def find_problems(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> Iterator[str]:
    """Yield one message per invalid value, contradiction or missing file."""
    yield from training.unfit
    yield from _missing_paths(data, training)
    yield from _out_of_range(training)
    yield from _wrong_words(model, data, training)
    if training.bits in (4, 8) and not training.lora_enable:
        yield f"--bits {training.bits} without --lora_enable True: quantised weights cannot be trained"
    if training.bits in (4, 8) and importlib.util.find_spec("bitsandbytes") is None:
        yield f"--bits {training.bits}: bitsandbytes is not installed"
    if training.lora_enable and model.tune_mm_mlp_adapter:
        yield "--lora_enable and --tune_mm_mlp_adapter: choose one"
    for name in ("lora_target_modules", "use_rslora", "use_dora", "loraplus_lr_ratio"):
        if getattr(training, name) and not training.lora_enable:
            yield f"--{name} without --lora_enable True: there is no adapter"
    if training.use_dora and (training.deepspeed or training.fsdp or training.bits != 16):
        yield "--use_dora True with --deepspeed, --fsdp or --bits: is not tested here; leave one of them out"
    if model.init_adapter:
        yield from _adapter_problems(model, training)
    if training.freeze_mm_mlp_adapter and model.tune_mm_mlp_adapter:
        yield "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter leave nothing to train"
    if training.freeze_mm_mlp_adapter and training.mm_projector_lr is not None:
        yield "--mm_projector_lr and --freeze_mm_mlp_adapter: the projector is not trained; choose one"
    if training.group_by_length and training.group_by_modality_length:
        yield "--group_by_length and --group_by_modality_length: choose one"
    yield from recipe_problems(training)
    yield from _validation_problems(data, training)
    if training.save_minutes and training.save_strategy.value == "no":
        yield f"--save_minutes {training.save_minutes:g} and --save_strategy no: choose one"
    yield from _unusable(training)


def _out_of_range(training: TrainingArguments) -> Iterator[str]:
    for fits, wanted, names in _RANGES:
        for name in names:
            value = getattr(training, name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                yield f"--{name} {value:g}: wanted {wanted}"


def _wrong_words(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> Iterator[str]:
    if data.bad_samples not in POLICIES:
        yield f"--bad_samples {data.bad_samples}: wanted {', '.join(POLICIES)}"
    if data.image_aspect_ratio == "anyres":
        yield "--image_aspect_ratio anyres: tiles cannot be trained on; use pad"
    elif data.image_aspect_ratio not in ASPECT_RATIOS:
        yield f"--image_aspect_ratio {data.image_aspect_ratio}: wanted {' or '.join(ASPECT_RATIOS)}"
    if training.bits not in (4, 8, 16):
        yield f"--bits {training.bits}: wanted 4, 8 or 16"
    if training.quant_type not in ("fp4", "nf4"):
        yield f"--quant_type {training.quant_type}: wanted fp4 or nf4"
    if not is_projector_type(model.mm_projector_type):
        yield f"--mm_projector_type {model.mm_projector_type}: wanted linear, mlpNx_gelu or identity"
    if training.lora_bias not in BIASES:
        yield f"--lora_bias {training.lora_bias}: wanted {', '.join(BIASES)}"
    for name, choices in _CHOICES.items():
        if getattr(model, name) not in choices:
            yield f"--{name} {getattr(model, name)}: wanted {', '.join(choices)}"
    json_flags = {
        "lr_scheduler_kwargs": training.lr_scheduler_kwargs,
        "gradient_checkpointing_kwargs": training.checkpointing_kwargs,
    }
    for name, value in json_flags.items():
        if isinstance(value, str):
            yield f"""--{name} {value}: wanted a JSON object, as '{{"NAME": VALUE}}'"""


def _unusable(training: TrainingArguments) -> Iterator[str]:
    """Yield what transformers offers and this training cannot use."""
    config = training.hf_deepspeed_config.config if training.deepspeed else None
    yield from unsupported(bits=training.bits, fsdp=training.fsdp_plugin_args, deepspeed=config)
    if training.fsdp:
        yield from _unusable_with_fsdp(training)
    elif training.fsdp_config:
        yield "--fsdp_config without --fsdp True: no weights would be shared out; give --fsdp True alone"
    if training.remove_unused_columns:
        yield "--remove_unused_columns True would drop every image"
    if training.label_smoothing_factor:
        yield (
            f"--label_smoothing_factor {training.label_smoothing_factor:g}: not supported, because images "
            "add positions without a label; leave it at 0"
        )
    if training.pushes_to is not None and training.pushes_to.count("/") != 1:
        yield f"--push_to_hub True: wanted --hub_model_id OWNER/NAME, found {training.pushes_to or 'none'}"
    if training.hub_token:
        yield "--hub_token: flags are logged; run `hf auth login`, or set HF_TOKEN"
    if training.hub_revision or "checkpoint" in training.hub_strategy.value:
        yield "--hub_revision, --hub_strategy: only the result is pushed, to main; for more use `llava push`"
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        yield "--dataloader_persistent_workers True needs --dataloader_num_workers of 1 or more"
    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except (ImportError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        name = OptimizerNames(training.optim).value
        yield f"--optim {name}: cannot be used ({one_line(error, 200)}); use adamw_torch"
    weight = torch.zeros(1, requires_grad=True)
    try:
        get_scheduler(
            training.lr_scheduler_type,
            torch.optim.SGD([weight], lr=1.0),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        yield (
            f"--lr_scheduler_type {training.lr_scheduler_type.value}: {one_line(error, 200)}; give what it "
            """needs as --lr_scheduler_kwargs '{"NAME": VALUE}', or use cosine"""
        )


def _unusable_with_fsdp(training: TrainingArguments) -> Iterator[str]:
    if training.deepspeed or training.planned_deepspeed:
        yield "--fsdp and --deepspeed: choose one"
    if training.use_liger_kernel:
        yield "--use_liger_kernel True with --fsdp: is not tested here; leave one of them out"
    if training.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
        name = OptimizerNames(training.optim).value
        yield f"--optim {name} with --fsdp: is not tested here; use adamw_torch"
    if training.world_size == 1 and not training.dry_run:
        yield "--fsdp: shares out a model among processes, and this is one; start several, or leave it out"


def _adapter_problems(model: ModelArguments, training: TrainingArguments) -> Iterator[str]:
    if not training.lora_enable:
        yield "--init_adapter without --lora_enable True: only an adapter can be trained further"
    if model.pretrain_mm_mlp_adapter:
        yield "--init_adapter and --pretrain_mm_mlp_adapter: choose one; an adapter comes with its projector"
    if Path(str(model.init_adapter)).is_dir():  # one on the hub is checked after the download
        yield from adapter_mismatches(Path(str(model.init_adapter)), training)


def _validation_problems(data: DataArguments, training: TrainingArguments) -> Iterator[str]:
    strategy = training.eval_strategy.value
    if not 0.0 <= data.held_out < 1.0:
        yield f"--held_out {data.held_out:g}: wanted a part of the images, from 0 to less than 1"
    if data.held_out and data.eval_data_path:
        yield "--held_out and --eval_data_path: choose one"
    if not data.held_out and not data.eval_data_path and strategy != "no":
        yield (
            f"--evaluation_strategy {strategy}: there is no data to evaluate on; use no, or give --held_out "
            "0.01 (of the images) or --eval_data_path FILE"
        )
    if (data.held_out or data.eval_data_path) and strategy == "no":
        yield (
            "--held_out or --eval_data_path with --evaluation_strategy no: never looked at; use steps (with "
            "--eval_steps N) or epoch"
        )
    if training.load_best_model_at_end and strategy == "no":
        yield "--load_best_model_at_end True without --evaluation_strategy: nothing says which is best"
    if training.greater_is_better:
        yield "--greater_is_better True: every metric here is a loss; leave it out"
    if training.save_strategy.value == "best":
        yield (
            "--save_strategy best: use steps or epoch; --load_best_model_at_end True saves each best model "
            "besides"
        )


def _missing_paths(data: DataArguments, training: TrainingArguments) -> Iterator[str]:
    if data.data_path is None:
        yield "--data_path is missing: give the JSON file of conversations"
    else:
        yield from data_file_problems(data.data_path)
    if data.eval_data_path is not None and not Path(data.eval_data_path).is_file():
        yield f"--eval_data_path {data.eval_data_path}: no such file"
    if data.image_folder is not None and not Path(data.image_folder).is_dir():
        yield f"--image_folder {data.image_folder}: no such folder"
    if isinstance(training.deepspeed, str) and not Path(training.deepspeed).is_file():
        yield f"--deepspeed {training.deepspeed}: no such file"
    resume = str(training.resume_from_checkpoint)
    if resume not in RESUME.values() and not Path(resume).is_dir():
        yield f"--resume_from_checkpoint {resume}: wanted auto, never, or the folder of a checkpoint"
