"""Fine-tune LLaVA: load, check the data, adapt the model, fit, save.

Source: LLaVA v1.2.2 llava/train/train.py.
"""

from __future__ import annotations

from llava.train.flags import answer_help

if __name__ == "__main__":
    answer_help()  # at once; what follows takes seconds to import

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.command import run
from llava.compat.preprocess import _tokenize_fn as _tokenize_fn
from llava.compat.preprocess import preprocess as preprocess
from llava.compat.preprocess import preprocess_llama_2 as preprocess_llama_2
from llava.compat.preprocess import preprocess_mpt as preprocess_mpt
from llava.compat.preprocess import preprocess_multimodal as preprocess_multimodal
from llava.compat.preprocess import preprocess_plain as preprocess_plain
from llava.compat.preprocess import preprocess_v1 as preprocess_v1
from llava.compat.state import find_all_linear_names as find_all_linear_names
from llava.compat.state import get_mm_adapter_state_maybe_zero_3 as get_mm_adapter_state_maybe_zero_3
from llava.compat.state import get_peft_state_maybe_zero_3 as get_peft_state_maybe_zero_3
from llava.compat.state import get_peft_state_non_lora_maybe_zero_3 as get_peft_state_non_lora_maybe_zero_3
from llava.compat.state import maybe_zero_3 as maybe_zero_3
from llava.compat.state import rank0_print as rank0_print
from llava.compat.state import smart_tokenizer_and_embedding_resize as smart_tokenizer_and_embedding_resize
from llava.data.collate import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.data.mixture import TrainingData
from llava.tokenizer import LlamaSentencePieceTokenizer, load_tokenizer
from llava.train import build
from llava.train.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    check_arguments,
    parse_arguments,
)
from llava.train.checkpointing.checkpoints import CheckpointCallback
from llava.train.checkpointing.deepspeed_files import patch_deepspeed_io
from llava.train.checkpointing.describe import write_run_record
from llava.train.checkpointing.resume import Start, find_start
from llava.train.checkpointing.save import lock_output_dir
from llava.train.checkpointing.signals import Signals
from llava.train.distributed import destroy_process_group
from llava.train.finish import clear_result, make_hub_repo, push_result, save_result
from llava.train.finish import safe_save_model_for_hf_trainer as safe_save_model_for_hf_trainer
from llava.train.init_adapter import set_trained_beside
from llava.train.llava_trainer import LLaVATrainer
from llava.train.outcome import end_if_stopped, make_output_dir, require_learned, run_steps
from llava.train.planning.foresee import print_plan
from llava.train.planning.startup import Outlook, describe_trained, log_startup, plan_run
from llava.train.reporters import kept_wandb_run

logger = logging.getLogger(__name__)


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Fine-tune as the flags say and save to `--output_dir`. Pass `argv` by name.

    An interrupted run resumes from its last complete checkpoint; a finished one is left as it is.

    Args:
        attn_implementation: eager, sdpa or flash_attention_2; transformers' choice if None.
        argv: The flags; `sys.argv` if None.

    Raises:
        LlavaError: The flags, the data or the weights are invalid, or the disk is full.
    """
    train_with(*parse_arguments(argv), attn_implementation=attn_implementation)


def train_with(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    *,
    attn_implementation: str | None = None,
) -> None:
    """Fine-tune as the arguments say: `train` for callers that make them in Python.

    An interrupted run resumes from its last complete checkpoint; a finished one is left as it is.

    Raises:
        LlavaError: The arguments, the data or the weights are invalid, or the disk is full.
    """
    if not training_args.learned_from:
        check_arguments(model_args, data_args, training_args)
    if training_args.dry_run:
        print_plan(model_args, data_args, training_args)
        return
    output = make_output_dir(training_args)
    with lock_output_dir(output, is_writer=training_args.should_save):
        start = find_start(training_args)
        if start.is_finished:
            logger.info("%s: already finished; nothing is trained", output)
            push_result(training_args)
            return
        assembled = assemble(model_args, data_args, training_args, attn_implementation=attn_implementation)
        fit(assembled, start)


@dataclass(slots=True)
class Assembled:
    """Everything a run needs. The model may be changed, its weights for example, before `fit` gets it."""

    model: PreTrainedModel
    tokenizer: LlamaSentencePieceTokenizer
    dataset: TrainingData
    collator: DataCollatorForSupervisedDataset
    model_args: ModelArguments
    data_args: DataArguments
    training_args: TrainingArguments
    eval_dataset: TrainingData | None = None


def assemble(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    *,
    attn_implementation: str | None = None,
) -> Assembled:
    """Load tokenizer and data, then the model, and make it ready to train.

    Sets the global random seeds, so that equal seeds give equal adapters and projectors, and fills in flags
    that the model decides. `train_with` checks the flags themselves before.

    Raises:
        SettingsError: Flags do not fit the model or the data.
        CheckpointError: Weights are missing, damaged, or do not fit each other.
        DataError: A record or an image is invalid.
    """
    make_hub_repo(training_args)
    base = build.locate_base(model_args, data_args, training_args)
    tokenizer = load_tokenizer(
        base.folder, model_max_length=training_args.model_max_length, padding_side="right"
    )
    dataset, eval_dataset = build.load_data(tokenizer, base, model_args, data_args, training_args)

    # Before the first random weight: the original seeds later, and gives other adapters at every run.
    transformers.set_seed(training_args.seed)
    model = build.load_language_model(base, model_args, training_args, attn_implementation)
    build.set_template(model, model_args.version)
    build.set_padding_token(model, tokenizer, model_args.version)
    model = build.prepare_language_model(model, model_args, training_args)
    if data_args.is_multimodal:
        build.add_vision(model, tokenizer, model_args, data_args, training_args)
    if model_args.init_adapter:
        set_trained_beside(model, Path(model_args.init_adapter))
    build.set_precision(model, training_args)
    for line in describe_trained(model):
        logger.info(line)
    collator = DataCollatorForSupervisedDataset(tokenizer, with_notes=True)
    return Assembled(model, tokenizer, dataset, collator, model_args, data_args, training_args, eval_dataset)


def fit(assembled: Assembled, start: Start | None = None) -> LLaVATrainer:
    """Train what `assemble` returned, save it, and return the trainer with its log.

    Args:
        assembled: The model, the data and the flags.
        start: The checkpoint to resume from; found in the output folder if None.

    Raises:
        LlavaError: The data, a checkpoint or the loss is invalid, or the disk is full.
    """
    trainer = LLaVATrainer(
        assembled.model,
        assembled.training_args,
        tokenizer=assembled.tokenizer,
        train_dataset=assembled.dataset,
        eval_dataset=assembled.eval_dataset,
        data_collator=assembled.collator,
    )
    start = start or find_start(trainer.args)
    plan = plan_run(trainer, assembled.dataset)
    trainer.set_recomputed_layers(plan.recomputed)
    log_startup(trainer, assembled.dataset, plan)
    trainer.add_callback(Outlook(assembled.dataset))

    clear_result(trainer)
    write_run_record(trainer)
    signals = Signals()
    callback = CheckpointCallback(
        trainer.checkpoints, signals, trainer.args.checkpoint_minutes, trainer.refused
    )
    trainer.add_callback(callback)
    deepspeed_io = patch_deepspeed_io(trainer.checkpoints) if trainer.is_deepspeed_enabled else nullcontext()
    wandb_run = kept_wandb_run(trainer.args, is_resumed=start.checkpoint is not None)
    with signals.handled(), deepspeed_io, wandb_run:
        run_steps(trainer, start)
        end_if_stopped(trainer, callback)
        require_learned(trainer)
        save_result(trainer, lambda: bool(signals.caught))
    push_result(assembled.training_args)
    return trainer


class DataModule(TypedDict):
    """The trainer's arguments about data."""

    train_dataset: LazySupervisedDataset
    eval_dataset: None
    data_collator: DataCollatorForSupervisedDataset


def make_supervised_data_module(tokenizer: PreTrainedTokenizerBase, data_args: Any) -> DataModule:
    """Return the trainer's arguments about data: train_dataset, eval_dataset (None) and data_collator."""
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def main() -> None:
    train()
    destroy_process_group()


if __name__ == "__main__":
    run(main)
