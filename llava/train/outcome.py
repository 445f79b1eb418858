"""How a training run's steps end: all done, stopped by a signal, or refused for bad data."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import NoReturn

from llava.errors import CheckpointError, DataError, LlavaError
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.checkpoints import CheckpointCallback, resume_advice
from llava.train.checkpointing.resume import Start
from llava.train.checkpointing.save import explain_write_errors
from llava.train.distributed import all_reduce_max
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


def require_learned(trainer: LLaVATrainer) -> None:
    """Check that a run that has ended had something to learn. Every rank must call this.

    Raises:
        DataError: No sample had a supervised label.
    """
    has_learned, has_not = all_reduce_max(int(trainer.has_learned is True), int(trainer.has_learned is False))
    if has_not and not has_learned:
        raise DataError(
            "no sample taught anything, so no result is written; raise --model_max_length "
            f"{trainer.args.model_max_length}, or fix the data",
            code="nothing-to-learn",
        )


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


def _end_for_signal(trainer: LLaVATrainer, number: int) -> NoReturn:
    logger.info(
        "stopped by %s after step %d of %d; %s",
        *(signal.Signals(number).name, trainer.state.global_step, trainer.state.max_steps),
        resume_advice(trainer.checkpoints),
    )
    raise SystemExit(128 + number)


def _end_for_refused_sample(trainer: LLaVATrainer) -> NoReturn:
    if not trainer.refused:
        raise SystemExit(2)
    raise DataError(
        f"step {trainer.state.global_step}: {trainer.refused[0]}; fix the data, or give --bad_samples skip; "
        f"{resume_advice(trainer.checkpoints)}",
        code="refused-sample",
    )


def _without_worker_traceback(error: LlavaError) -> LlavaError:
    """Return the error with only its real message, which PyTorch puts after the worker's traceback."""
    *above, last = str(error).strip().splitlines()
    if not above or "DataLoader worker" not in above[0]:
        return error
    return DataError(last.partition(": ")[2] or last, code=error.code)
