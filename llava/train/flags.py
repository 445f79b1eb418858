"""Declare the training flags and print --help, without importing torch or transformers, which takes seconds.

A program calls `answer_help` before its other imports. The flags are parsed in `arguments.py`.

Source: LLaVA v1.2.2 llava/train/train.py (names and defaults).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

_WIDTH, _INDENT = 110, 6
_WITHOUT_EFFECT = "Has no effect"


def _flag(default: Value, text: str) -> Value:
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

    # In this order, HfArgumentParser takes one file or several; Python code may also give a string.
    data_path: list[str] | None | str = field(  # noqa: RUF036
        default=None,
        metadata={
            "help": "JSON file of conversations, or several. FILE:2 takes each of its samples twice an "
            "epoch, FILE:0.5 half of them, drawn by the seed."
        },
    )
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
    image_processor: Any = field(default=None, init=False, repr=False)
    mm_use_im_start_end: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.data_path, list) and len(self.data_path) == 1:
            (self.data_path,) = self.data_path  # as code for the original expects it


@dataclass
class LlavaTrainingFlags:
    """Flags of training that transformers does not have, or has with another default or meaning."""

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
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers that get an adapter, such as q_proj v_proj; all by default."},
    )
    use_rslora: bool = _flag(False, "rsLoRA: multiply the adapter's output by alpha / sqrt(r).")
    use_dora: bool = _flag(False, "DoRA: also learn the length of each row of the weights.")
    loraplus_lr_ratio: float | None = _flag(
        None, "LoRA+: the adapter's B matrices learn at so many times --learning_rate."
    )
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

    dry_run: bool = _flag(False, "Say what the run needs, by `llava plan`, and train nothing.")
    gpu: str | None = _flag(None, "For the plan: a GPU's memory, as 24GB, or its name, as A100 or 4090.")
    gpus: int | None = _flag(None, "For the plan: number of GPUs; those that are here if not given.")
    rate: str | None = _flag(
        None, "For the plan: samples a second on all GPUs, or the output folder of an earlier run."
    )

    per_device_eval_batch_size: int = _flag(1, "Has no effect: validation takes one sample at a time.")

    # Declared again: `--gradient_checkpointing` once took no value, and `--report_to` several.
    gradient_checkpointing: bool = _flag(False, "Recompute activations to save memory.")
    report_to: list[str] | None = field(
        default=None,
        metadata={"help": "tensorboard (the default if installed), wandb, mlflow, all or none."},
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


# Flags of transformers' own that --help explains: default and meaning.
FREQUENT: dict[str, tuple[object, str]] = {
    "output_dir": (None, "Folder for checkpoints and the result."),
    "num_train_epochs": (3.0, "Epochs to train."),
    "max_steps": (-1, "Steps to train, instead of epochs."),
    "per_device_train_batch_size": (8, "Samples of a batch on each device."),
    "gradient_accumulation_steps": (1, "Batches of an optimizer step."),
    "learning_rate": (5e-05, "Highest learning rate."),
    "weight_decay": (0.0, "Weight decay, of all weights but biases and norms."),
    "lr_scheduler_type": ("linear", "How the learning rate falls: linear, cosine, constant, ..."),
    "lr_scheduler_kwargs": (None, "What the schedule needs, as JSON."),
    "max_grad_norm": (1.0, "Norm that gradients are clipped to; 0 for none."),
    "bf16": (False, "Compute in bfloat16."),
    "fp16": (False, "Compute in float16; bfloat16 is better where the hardware has it."),
    "deepspeed": (None, "DeepSpeed's configuration: scripts/zero2.json, zero3.json or zero3_offload.json."),
    "use_liger_kernel": (False, "Compute with Liger's fused kernels; needs a GPU and liger-kernel."),
    "seed": (42, "Seed of random weights, of dropout, and of the samples' order."),
    "data_seed": (None, "Seed of the samples' order; --seed if not given."),
    "dataloader_num_workers": (0, "Processes that read samples, for each device."),
    "logging_steps": (500, "Steps from one line of the log to the next."),
    "eval_strategy": ("no", "When to validate: no, steps or epoch."),
    "eval_steps": (None, "Steps from one validation to the next; --logging_steps if not given."),
    "save_strategy": ("steps", "When to write checkpoints: no, steps or epoch."),
    "save_steps": (500, "Steps from one checkpoint to the next."),
    "save_total_limit": (None, "Most checkpoints to keep; the oldest are deleted."),
    "load_best_model_at_end": (
        False,
        "Keep the checkpoint with the lowest validation loss, and end with its weights.",
    ),
    "metric_for_best_model": (None, "The loss that says which is best: eval_loss, or eval_loss/KIND."),
    "save_only_model": (False, "Write checkpoints that cannot be resumed from, without optimizer state."),
    "push_to_hub": (False, "Upload the result to --hub_model_id of the Hugging Face Hub, as `llava push`."),
    "hub_model_id": (None, "OWNER/NAME; made before training if it is missing, private by default."),
    "hub_private_repo": (None, "False: make it public."),
    "run_name": (None, "Name of the run in W&B and the like."),
}


def answer_help() -> None:
    """Print --help and exit if the command line asks for it."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        program = sys.argv[0] if sys.argv[0].startswith("llava ") else Path(sys.argv[0]).name
        sys.stdout.write(format_help(program))
        sys.exit(0)


def format_help(program: str) -> str:
    """Return the text of --help: LLaVA's flags with their meaning, then the frequent ones of transformers."""
    sections = {"Model": ModelArguments, "Data": DataArguments, "Training, LLaVA's": LlavaTrainingFlags}
    lines, idle = [f"usage: {program} --FLAG VALUE ..."], []
    for title, kind in sections.items():
        lines += ["", f"{title}:"]
        for flag in fields(kind):
            text = flag.metadata.get("help", "")
            if text.startswith(_WITHOUT_EFFECT):
                idle.append(flag.name)
            elif flag.init:
                lines += _explain(flag.name, flag.default, text)
    lines += ["", "Training, transformers':"]
    for name, (default, text) in FREQUENT.items():
        lines += _explain(name, default, text)
    lines += ["", "The documentation of transformers' TrainingArguments explains all its other flags."]
    lines += ["", "Accepted for the original's scripts, without effect:"]
    lines += textwrap.wrap(", ".join(sorted(idle)), _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _explain(name: str, default: object, text: str) -> Iterator[str]:
    yield f"  --{name}" + ("" if default in (None, MISSING) else f"  (default: {default!s})")
    indent = " " * _INDENT
    yield from textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
