"""How a training run ends: finished and saved, stopped by a signal, or refused for bad data."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import NoReturn

import torch
from transformers import Trainer

from llava.errors import CheckpointError, DataError, LlavaError
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.checkpoints import CheckpointCallback
from llava.train.checkpointing.resume import STATE_FILE, Start
from llava.train.checkpointing.save import explain_write_errors, require_space
from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)


def make_output_dir(training_args: TrainingArguments) -> Path:
    """Make the output folder and return it, so that a folder that cannot be written to fails at the start.

    Raises:
        CheckpointError: The folder cannot be made or written to.
    """
    output = Path(str(training_args.output_dir))
    if not training_args.should_save:
        return output
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise CheckpointError(
            f"{output}: may not be written to; give another --output_dir", code="not-writable"
        )
    return output


def clear_result(trainer: LLaVATrainer) -> None:
    """Check that the result will fit on the disk, and remove the file that marks a run as finished.

    Raises:
        CheckpointError: The disk has too little space.
    """
    if trainer.args.should_save:
        require_space(trainer.model, _state_file(trainer).parent, whole=trainer.kind == "full")
        _state_file(trainer).unlink(missing_ok=True)


def run_steps(trainer: LLaVATrainer, start: Start) -> None:
    """Train from the start or from a checkpoint, and log how many samples taught nothing.

    Raises:
        LlavaError: A sample cannot be read, or the loss is not finite.
    """
    if start.checkpoint is not None:
        logger.info("resuming from %s", start.checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
    except LlavaError as error:
        raise _without_worker_traceback(error) from error
    for problem, count in trainer.problems.items():
        logger.warning("%d times a sample taught nothing: %s", count, problem)


def end_if_stopped(trainer: LLaVATrainer, callback: CheckpointCallback) -> None:
    """Exit if a signal or a refused sample stopped training. Call it after the save.

    Raises:
        SystemExit: With 128 plus the signal's number; with 2 if another rank has the bad sample.
        DataError: This rank has the bad sample.
    """
    if callback.stop_signal:
        _end_for_signal(trainer, callback.stop_signal)
    if callback.has_refused:
        _end_for_refused_sample(trainer)


def save_result(trainer: LLaVATrainer) -> None:
    """Write the result and, last, the state file that marks the run as finished.

    Raises:
        CheckpointError: It cannot be written; the message names the last checkpoint.
    """
    state_file = _state_file(trainer)
    try:
        safe_save_model_for_hf_trainer(trainer, str(state_file.parent))
        if trainer.args.should_save:
            with explain_write_errors(state_file.parent):
                unfinished = state_file.with_suffix(".part")
                trainer.state.save_to_json(str(unfinished))
                unfinished.replace(state_file)
    except CheckpointError as error:
        newest = trainer.checkpoints.newest()
        kept = f"the same command then resumes from {newest}" if newest else "there is no checkpoint"
        raise CheckpointError(f"{error}; {kept}", code=error.code) from error


def safe_save_model_for_hf_trainer(trainer: Trainer, output_dir: str) -> None:
    """Write the final weights. Under DeepSpeed every rank must call this.

    Args:
        trainer: Ours, or any of transformers', which then writes what its `save_model` does.
        output_dir: The folder.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    trainer.model.config.use_cache = True
    is_ours = isinstance(trainer, LLaVATrainer) and trainer.has_own_flags
    if is_ours and trainer.kind == "full" and not trainer.is_deepspeed_enabled:
        # Trained in fp32; the file has the compute precision, as DeepSpeed's has.
        trainer.model.to(trainer.args.compute_dtype)
    trainer.save_model(output_dir)


def _state_file(trainer: LLaVATrainer) -> Path:
    return Path(str(trainer.args.output_dir)) / STATE_FILE


def _end_for_signal(trainer: LLaVATrainer, number: int) -> NoReturn:
    newest = trainer.checkpoints.newest()
    logger.info(
        "stopped by %s after step %d of %d; %s",
        *(signal.Signals(number).name, trainer.state.global_step, trainer.state.max_steps),
        f"the same command resumes from {newest}" if newest else "there is no checkpoint to resume from",
    )
    raise SystemExit(128 + number)


def _end_for_refused_sample(trainer: LLaVATrainer) -> NoReturn:
    if not trainer.refused:
        raise SystemExit(2)
    newest = trainer.checkpoints.newest()
    raise DataError(
        f"step {trainer.state.global_step}: {trainer.refused[0]}; fix the data, and the same command resumes "
        f"{f'from {newest}' if newest else 'from the start'}, or give --bad_samples skip",
        code="refused-sample",
    )


def _without_worker_traceback(error: LlavaError) -> LlavaError:
    """Return the error with only its real message, which PyTorch puts after the worker's traceback."""
    *above, last = str(error).strip().splitlines()
    if not above or "DataLoader worker" not in above[0]:
        return error
    return DataError(last.partition(": ")[2] or last, code=error.code)
