"""Fine-tune LLaVA: flags, assembly, training, saving. Also the original's names, for those who import them.

Source: LLaVA v1.2.2 llava/train/train.py.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from llava.command import run
from llava.data.collate import DataCollatorForSupervisedDataset
from llava.data.dataset import LazySupervisedDataset
from llava.errors import CheckpointError, DataError, LlavaError
from llava.model.lora import lora_targets as find_all_linear_names
from llava.model.zero3 import gather_copy as maybe_zero_3
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from llava.train.assemble import Assembled, assemble
from llava.train.checkpointing.checkpoints import CheckpointCallback
from llava.train.checkpointing.deepspeed_files import patch_deepspeed_io
from llava.train.checkpointing.resume import STATE_FILE, find_start
from llava.train.checkpointing.save import (
    explain_write_errors,
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    lock_output_dir,
    require_space,
)
from llava.train.checkpointing.signals import Signals
from llava.train.distributed import destroy_process_group
from llava.train.llava_trainer import LLaVATrainer
from llava.train.planning.startup import announce

__all__ = [
    "Assembled",
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LLaVATrainer",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "assemble",
    "find_all_linear_names",
    "fit",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "make_supervised_data_module",
    "maybe_zero_3",
    "safe_save_model_for_hf_trainer",
    "train",
]

logger = logging.getLogger(__name__)


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Train as the flags say, and leave the result in `--output_dir`.

    A run that is finished is left alone; one that was cut off goes on from its last complete checkpoint.

    Args:
        attn_implementation: eager, sdpa or flash_attention_2; transformers' choice if None.
        argv: The flags; `sys.argv` if None.

    Raises:
        LlavaError: The flags, the data or the weights are not as they must be, or the disk is full.
    """
    model_args, data_args, training_args = parse_arguments(argv)
    output = _writable_folder(training_args)
    with lock_output_dir(output, is_writer=training_args.should_save):
        if find_start(training_args).is_finished:
            logger.info("%s: already finished; nothing is done", output)
            return
        fit(assemble(model_args, data_args, training_args, attn_implementation=attn_implementation))


def fit(assembled: Assembled) -> LLaVATrainer:
    """Train what was assembled and save it; the trainer with its log."""
    trainer = LLaVATrainer(
        assembled.model,
        assembled.training_args,
        tokenizer=assembled.tokenizer,
        train_dataset=assembled.dataset,
        eval_dataset=assembled.eval_dataset,
        data_collator=assembled.collator,
    )
    start = find_start(trainer.args)
    if start.checkpoint is not None:
        logger.info("going on from %s", start.checkpoint)
    announce(trainer, assembled.dataset)
    state_file = Path(str(trainer.args.output_dir)) / STATE_FILE
    if trainer.args.should_save:
        require_space(assembled.model, state_file.parent, whole=trainer.kind == "full")
        state_file.unlink(missing_ok=True)  # from here on its presence means that this run is finished
    signals = Signals()
    assembled.dataset.defers_errors = True  # until the end of the step, where all ranks can save
    callback = CheckpointCallback(
        trainer.checkpoints, signals, trainer.args.checkpoint_minutes, trainer.refused
    )
    trainer.add_callback(callback)
    files = patch_deepspeed_io(trainer.checkpoints) if trainer.is_deepspeed_enabled else nullcontext()
    with signals.handled(), files:
        try:
            trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        except LlavaError as error:
            raise _without_traceback(error) from error
        for problem, count in trainer.problems.items():
            logger.warning("%d times a sample taught nothing: %s", count, problem)
        if callback.stop_signal:
            _leave(trainer, callback.stop_signal)
        if callback.has_refused:
            _refuse(trainer)
        _save_result(trainer, state_file)
    return trainer


def _leave(trainer: LLaVATrainer, signum: int) -> NoReturn:
    """End a run that was asked to, with the exit code that shells know for it; say how it goes on."""
    newest = trainer.checkpoints.newest()
    logger.info(
        "stopped by %s after step %d of %d; %s",
        *(signal.Signals(signum).name, trainer.state.global_step, trainer.state.max_steps),
        f"the same command goes on from {newest}" if newest else "there is no checkpoint to go on from",
    )
    raise SystemExit(128 + signum)


def _refuse(trainer: LLaVATrainer) -> NoReturn:
    """End a run, saved, for a sample that --bad_samples error refuses.

    Raises:
        DataError: In the processes that had one; the others end with the same exit code.
    """
    if not trainer.refused:
        raise SystemExit(2)
    newest = trainer.checkpoints.newest()
    raise DataError(
        f"step {trainer.state.global_step}: {trainer.refused[0]}; mend the data, and the same command goes "
        f"on {f'from {newest}' if newest else 'from the start'}, or give --bad_samples skip"
    )


def _save_result(trainer: LLaVATrainer, state_file: Path) -> None:
    """Write the result and, last, the state that says it is whole.

    Raises:
        CheckpointError: It cannot be written; the last checkpoint is named.
    """
    try:
        safe_save_model_for_hf_trainer(trainer, str(state_file.parent))
        if trainer.args.should_save:
            with explain_write_errors(state_file.parent):
                part = state_file.with_suffix(".part")
                trainer.state.save_to_json(str(part))
                part.replace(state_file)
    except CheckpointError as error:
        newest = trainer.checkpoints.newest()
        kept = f"the same command then goes on from {newest}" if newest else "there is no checkpoint"
        raise CheckpointError(f"{error}; {kept}", code=error.code) from error


def safe_save_model_for_hf_trainer(trainer: LLaVATrainer, output_dir: str) -> None:
    """Write the final result. Under DeepSpeed every process must call this."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    trainer.model.config.use_cache = True
    if trainer.kind == "full" and not trainer.is_deepspeed_enabled:
        # Trained in fp32; the file is in the compute type, as DeepSpeed's is.
        trainer.model.to(trainer.args.compute_dtype)
    trainer.save_model(output_dir)


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """The trainer's three arguments about data: train_dataset, eval_dataset (None) and data_collator."""
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }


def _writable_folder(training_args: TrainingArguments) -> Path:
    """The output folder, made: not after a day is it found out that it cannot be."""
    output = Path(str(training_args.output_dir))
    if not training_args.should_save:
        return output
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise CheckpointError(f"{output}: may not be written to; give another --output_dir")
    return output


def _without_traceback(error: LlavaError) -> LlavaError:
    """An error from a data loader's process comes as text that ends in the real message; that line alone."""
    *above, last = str(error).strip().splitlines()
    if not above or "DataLoader worker" not in above[0]:
        return error
    return DataError(last.partition(": ")[2] or last)


def quiet_libraries() -> None:
    """Hide what libraries say to their developers, a line a step; for commands."""
    for module in ("torch.distributed", "transformers", "peft"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    # Adapters are kept off the vision tower by name, also where it is loaded later.
    warnings.filterwarnings("ignore", message=".*no modules were excluded.*")
    # It looks for a faster kernel that a CPU can do without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> None:
    quiet_libraries()
    train()
    destroy_process_group()


if __name__ == "__main__":
    run(main)
