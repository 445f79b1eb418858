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
from llava.train.flags import DataArguments, LlavaTrainingFlags, ModelArguments
from llava.train.parser import FlagParser
from llava.train.reporters import choose_reporters

logger = logging.getLogger(__name__)


@dataclass
class TrainingArguments(LlavaTrainingFlags, transformers.TrainingArguments):
    """The training arguments of transformers, with the original's additions and older flag names."""

    # Flags that this machine cannot honour; reported with the other invalid flags.
    unfit: list[str] = field(default_factory=list, init=False, repr=False)
    # With --dry_run: what --deepspeed names.
    planned_deepspeed: str | None = field(default=None, init=False, repr=False)
    # With --push_to_hub: the repository. transformers' Trainer would push checkpoints, too.
    pushes_to: str | None = field(default=None, init=False, repr=False)
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
        if self.greater_is_better is None:  # type: ignore[has-type]
            self.greater_is_better = False  # every metric is a loss
        if self.push_to_hub:  # type: ignore[has-type]
            self.pushes_to, self.push_to_hub = self.hub_model_id or "", False
        if str(self.fsdp).lower() in ("true", "false"):  # type: ignore[has-type]  # transformers' field
            self.fsdp = str(self.fsdp).lower() == "true"  # type: ignore[has-type]
        self._fit_to_hardware()
        if self.dry_run:  # nothing is started, and the plan may be for another machine
            self.planned_deepspeed = self.deepspeed  # type: ignore[has-type]  # transformers' field
            self.deepspeed = None
        for flag, problem in self._impossible():
            self.unfit.append(problem)
            setattr(self, flag, None)  # or transformers raises before the other flags are checked
        super().__post_init__()
        if getattr(torch.backends, "fp32_precision", None) == "tf32":
            # transformers sets this alone, and the older flag, which torch.compile reads, then raises.
            torch.backends.cuda.matmul.allow_tf32 = True
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

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The precision of autocast, or of what FSDP gathers, which computes alike; None without either.

        DeepSpeed casts the weights instead.
        """
        return self.compute_dtype if (self.bf16 or self.fp16) and not self.deepspeed else None


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

Parsed = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Parsed:
    """Parse and check the flags.

    Args:
        argv: The flags; `sys.argv` if None.

    Raises:
        SettingsError: A flag is unknown, has an invalid value, or contradicts another.
    """
    parser = FlagParser((ModelArguments, DataArguments, TrainingArguments))
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
    return model, data, training


def check_arguments(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Check the flags for invalid values, contradictions and missing files; record what decides the result.

    Raises:
        SettingsError: Lists all problems.
    """
    problems = list(find_problems(model, data, training))
    if problems:
        raise SettingsError("; ".join(problems), code="invalid-flags")
    if training.logging_dir:
        os.environ["TENSORBOARD_LOGGING_DIR"] = training.logging_dir
    training.learned_from = record_settings(model, data, training)
