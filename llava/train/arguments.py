"""Parse and check the training flags: those of the original, on top of today's transformers.

Flags that transformers has dropped since are declared here and mapped in one table, so that published scripts
run unchanged. Contradictions are found before any weight is read.

Source: LLaVA v1.2.2 llava/train/train.py (names and defaults); transformers 4.37.2 (dropped names).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import transformers
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from llava.errors import SettingsError, one_line
from llava.schema import JsonObject
from llava.train.check_arguments import RESUME, find_problems
from llava.train.checkpointing.settings import record_settings
from llava.train.deepspeed_start import meet_on_cpu, no_launcher
from llava.train.parser import FlagParser
from llava.train.reporters import choose_reporters

logger = logging.getLogger(__name__)


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Flags that choose the model and its vision modules."""

    model_name_or_path: str = _flag("facebook/opt-125m", "Folder or hub id of a language or LLaVA model.")
    version: str = _flag("v0", "Conversation template: v1 to fine-tune LLaVA-1.5, plain to pretrain.")
    freeze_backbone: bool = _flag(False, "Do not train the language model.")
    tune_mm_mlp_adapter: bool = _flag(False, "Train only the projector.")
    vision_tower: str | None = _flag(None, "Folder or hub id of the CLIP vision tower.")
    mm_vision_select_layer: int = _flag(-1, "Layer of the tower to take features from; -2 in LLaVA-1.5.")
    pretrain_mm_mlp_adapter: str | None = _flag(None, "Initial projector: file, folder or hub id.")
    init_adapter: str | None = _flag(
        None, "LoRA adapter and projector to train further on new data: folder, checkpoint-N or hub id."
    )
    mm_projector_type: str = _flag("linear", "linear, mlp2x_gelu (LLaVA-1.5), mlpNx_gelu or identity.")
    mm_use_im_start_end: bool = _flag(False, "Put <im_start> and <im_end> around the image.")
    mm_use_im_patch_token: bool = _flag(True, "Add <im_patch> to the vocabulary; False in LLaVA-1.5.")
    mm_patch_merge_type: str = _flag("flat", "How the tiles of an image are joined; flat in LLaVA-1.5.")
    mm_vision_select_feature: str = _flag("patch", "patch, or cls_patch to keep the class token.")


@dataclass
class DataArguments:
    """Flags that choose the training and validation data."""

    data_path: str | None = _flag(None, "JSON file of conversations.")
    lazy_preprocess: bool = _flag(False, "Has no effect: samples are always prepared on demand.")
    is_multimodal: bool = _flag(False, "Has no effect: true if there is a vision tower.")
    image_folder: str | None = _flag(None, "Folder that the image paths of the records are relative to.")
    image_aspect_ratio: str = _flag("square", "square resizes and crops; pad pads to a square (LLaVA-1.5).")
    held_out: float = _flag(
        0.0, "Share of the images to validate on instead of training on; 0.01 is one in a hundred."
    )
    eval_data_path: str | None = _flag(None, "JSON file of conversations to validate on.")
    bad_samples: str = _flag("error", "What to do about bad records and images: error, skip or repair.")
    check_data: bool = _flag(True, "Check every image and sample before training.")
    # Not flags: set when the model is built, and read by the data set.
    image_processor: transformers.CLIPImageProcessorPil | None = field(default=None, init=False, repr=False)
    mm_use_im_start_end: bool = field(default=False, init=False)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The training arguments of transformers, with the original's additions and older flag names."""

    cache_dir: str | None = _flag(None, "Folder that downloaded weights are cached in.")
    optim: str = _flag("adamw_torch", "Optimizer.")
    remove_unused_columns: bool = _flag(False, "Must be False: True would drop every image.")
    freeze_mm_mlp_adapter: bool = _flag(False, "Do not train the projector.")
    mpt_attn_impl: str | None = _flag("triton", "Has no effect: MPT models are not supported.")
    model_max_length: int = _flag(512, "Positions that samples are truncated to, image included.")
    double_quant: bool = _flag(True, "QLoRA: also quantise the quantisation constants.")
    quant_type: str = _flag("nf4", "QLoRA: 4-bit data type, fp4 or nf4.")
    bits: int = _flag(16, "Bits of the base's weights: 16, or 8 or 4 to quantise it.")
    lora_enable: bool = _flag(False, "Train a LoRA adapter (and the projector) instead of all weights.")
    lora_r: int = _flag(64, "Rank of the adapter.")
    lora_alpha: int = _flag(16, "The adapter's output is multiplied by alpha / r.")
    lora_dropout: float = _flag(0.05, "Dropout on the adapter's inputs.")
    lora_weight_path: str = _flag("", "Has no effect, as in the original.")
    lora_bias: str = _flag("none", "Biases to train: none, all or lora_only.")
    mm_projector_lr: float | None = _flag(None, "Learning rate of the projector, if different.")
    group_by_modality_length: bool = _flag(False, "Group samples by length and by having an image.")

    # How a step is computed; None: as the recipe says. See llava/train/step/recipe.py.
    recipe: str = _flag("fast", "exact, as the original; or fast, with the same losses.")
    pack: bool | None = _flag(None, "Pack the samples of a batch into rows without padding.")
    micro_batch_tokens: int | None = _flag(None, "Most positions of a packed row; 0 for one row a batch.")
    sparse_loss: bool | None = _flag(None, "Compute logits only at supervised positions.")
    skip_blank_images: bool | None = _flag(None, "Skip the vision tower for samples without an image.")
    skip_unread_layers: bool | None = _flag(None, "Skip the vision tower's layers after the selected one.")
    checkpoint_layers: str | None = _flag(
        None, "Layers to recompute with --gradient_checkpointing: auto (as memory requires), all or a number."
    )

    save_minutes: float | None = _flag(
        None, "Minutes between checkpoints, in addition to --save_steps: 30 by default, 0 for none."
    )

    per_device_eval_batch_size: int = _flag(1, "Has no effect: validation takes one sample at a time.")

    # Declared again: `--gradient_checkpointing` once took no value, and `--report_to` several.
    gradient_checkpointing: bool = _flag(False, "Recompute activations to save memory.")
    report_to: list[str] | None = field(
        default=None,
        metadata={"help": "tensorboard (the default if installed), wandb, all or none."},
    )
    resume_from_checkpoint: str | None = _flag(
        "auto", "auto (or True): the output folder's last; never (or False): start over; or a checkpoint-N."
    )
    use_cpu: bool = _flag(False, "Train on the CPU; the default without a GPU.")
    tf32: bool | None = _flag(None, "Allow TF32; ignored on hardware without it.")

    # Dropped by transformers; see OLD_NAMES.
    evaluation_strategy: str | None = _flag(None, "Old name of eval_strategy.")
    warmup_ratio: float = _flag(0.0, "Share of the steps used for warm-up; --warmup_steps takes precedence.")
    group_by_length: bool = _flag(False, "Group samples of similar length, with or without images.")
    no_cuda: bool = _flag(False, "Old name of use_cpu.")
    logging_dir: str | None = _flag(None, "Folder for TensorBoard files; OUTPUT_DIR/runs by default.")
    save_safetensors: bool = _flag(True, "Has no effect: full weights are always saved as safetensors.")
    overwrite_output_dir: bool = _flag(False, "Has no effect; see resume_from_checkpoint.")

    # Flags that this machine cannot honour; reported with the other invalid flags.
    unfit: list[str] = field(default_factory=list, init=False, repr=False)
    # Set after parsing: the flags that decide what is learned; see checkpointing/resume.py.
    learned_from: JsonObject = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        defaults = {flag.name: flag.default for flag in fields(self)}
        for name, (new_name, convert) in OLD_NAMES.items():
            value = getattr(self, name)
            if value and getattr(self, new_name) == defaults[new_name]:
                setattr(self, new_name, convert(value))
        resume = str(self.resume_from_checkpoint or "auto")
        self.resume_from_checkpoint = RESUME.get(resume.lower(), resume)
        self.report_to, self.unfit = choose_reporters(self.report_to)
        self.per_device_eval_batch_size = 1
        if self.disable_tqdm is None:  # type: ignore[has-type]  # transformers' field
            self.disable_tqdm = not sys.stderr.isatty()  # in a file, the steps' losses are progress enough
        if self.disable_tqdm:
            transformers.utils.logging.disable_progress_bar()
        self.average_tokens_across_devices = False  # the original averages the means of the ranks
        self.activation_checkpointing = self.gradient_checkpointing  # its name since transformers 6
        self._fit_to_hardware()
        for flag, problem in self._impossible():
            self.unfit.append(problem)
            setattr(self, flag, None)  # or transformers raises before the other flags are checked
        super().__post_init__()
        if self.deepspeed and self.use_cpu:
            meet_on_cpu(self.hf_deepspeed_config.config)

    @property
    def checkpointing_kwargs(self) -> dict[str, object] | None:
        """The settings of gradient checkpointing, by their newer name in transformers or by the older."""
        newer: dict[str, object] | None = getattr(self, "activation_checkpointing_kwargs", None)
        return self.gradient_checkpointing_kwargs if newer is None else newer

    def set_checkpointing_kwargs(self, default: dict[str, object]) -> None:
        """Set the settings of gradient checkpointing, under both names, unless flags did."""
        settings = default if self.checkpointing_kwargs is None else self.checkpointing_kwargs
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs = settings

    def _fit_to_hardware(self) -> None:
        """Turn off what this hardware cannot do, and log it."""
        if not self.use_cpu and not torch.accelerator.is_available():
            logger.info("no GPU found: training on the CPU")
            self.use_cpu = True
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, and warn
        if self.tf32 and (self.use_cpu or not is_torch_tf32_available()):
            logger.info("--tf32 True ignored: it needs an NVIDIA GPU of the Ampere generation or newer")
            self.tf32 = None

    def _impossible(self) -> Iterator[tuple[str, str]]:
        """Yield each flag that this machine cannot honour, with the reason."""
        if self.use_cpu and self.fp16:
            yield "fp16", "--fp16 True needs a GPU; on the CPU use --bf16 True or neither"
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            yield "bf16", "--bf16 True: this GPU has no bf16; use --bf16 False --fp16 True"
        if self.deepspeed and (reason := no_launcher()) is not None:
            yield "deepspeed", reason

    @property
    def checkpoint_minutes(self) -> float:
        """Minutes from one checkpoint to the next; 0 for none."""
        if self.save_strategy.value == "no":
            return 0.0
        return MINUTES if self.save_minutes is None else self.save_minutes

    @property
    def order_seed(self) -> int:
        """The seed for the order of the samples and for which are held out."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def compute_dtype(self) -> torch.dtype:
        """The model's compute precision: fp16 or bf16 if asked for, else fp32."""
        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else torch.float32


# Old name -> (today's name, old value -> today's value).
OLD_NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "evaluation_strategy": ("eval_strategy", str),
    "no_cuda": ("use_cpu", bool),
    "group_by_length": ("train_sampling_strategy", lambda _: "group_by_length"),
    # transformers reads warmup_steps below 1 as a ratio, and 1.0 as one step.
    "warmup_ratio": ("warmup_steps", lambda ratio: min(max(ratio, 0.0), math.nextafter(1.0, 0.0))),
}
# Dropped flags of transformers 4.37 that change no result: accepted, with a warning.
HARMLESS_FLAGS = (
    *("use_mps_device", "jit_mode_eval", "use_ipex", "tpu_num_cores", "tpu_metrics_debug", "past_index"),
    *("fp16_opt_level", "fp16_backend", "half_precision_backend", "torchdynamo", "ray_scope"),
    *("mp_parameters", "use_legacy_prediction_loop", "include_inputs_for_metrics"),
    "include_tokens_per_second",
)
MINUTES = 30.0  # a killed run loses no more; an epoch ends before the published --save_steps
# What transformers raises about flags, besides ValueError.
_REFUSALS = (ValueError, TypeError, ArithmeticError, KeyError, ImportError, RuntimeError, OSError)
# Flags of transformers' own that --help explains.
_FREQUENT = (
    *("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "weight_decay", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "max_grad_norm", "bf16", "fp16", "deepspeed", "use_liger_kernel", "seed"),
    *("data_seed", "dataloader_num_workers", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "run_name"),
)

Parsed = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Parsed:
    """Parse and check the flags.

    Args:
        argv: The flags; `sys.argv` if None.

    Raises:
        SettingsError: A flag is unknown, has an invalid value, or contradicts another.
    """
    kinds = (ModelArguments, DataArguments, TrainingArguments)
    sections = {
        "Model": [flag.name for flag in fields(ModelArguments)],
        "Data": [flag.name for flag in fields(DataArguments)],
        "Training, LLaVA's": list(TrainingArguments.__annotations__),
        "Training, transformers'": _FREQUENT,
    }
    parser = FlagParser(kinds, sections)
    for name in HARMLESS_FLAGS:
        parser.add_argument(f"--{name}", nargs="?", const=True, default=None, help=argparse.SUPPRESS)
    try:
        model, data, training, old, unknown = parser.parse_args_into_dataclasses(
            list(argv) if argv is not None else None, return_remaining_strings=True, look_for_args_file=False
        )
    except _REFUSALS as error:
        raise SettingsError(one_line(error), code="invalid-flags") from error
    if unknown:
        raise SettingsError(f"unknown flags: {' '.join(unknown)}; see --help", code="unknown-flag")
    for name in HARMLESS_FLAGS:
        if getattr(old, name) is not None:
            logger.warning("--%s no longer has any effect", name)
    check_arguments(model, data, training)
    training.learned_from = record_settings(model, data, training)
    return model, data, training


def check_arguments(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Check the flags for invalid values, contradictions and missing files.

    Raises:
        SettingsError: Lists all problems.
    """
    problems = list(find_problems(model, data, training))
    if problems:
        raise SettingsError("; ".join(problems), code="invalid-flags")
    if training.logging_dir:
        os.environ["TENSORBOARD_LOGGING_DIR"] = training.logging_dir
