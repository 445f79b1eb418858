"""Write a run's result, all of it or nothing, and never lose it to a full disk.

Where the output folder has no room, the result goes to the temporary folder (TMPDIR), and the same command
moves it to its place later. Where neither has, the run waits for room.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Trainer

from llava.errors import CheckpointError, one_line
from llava.model.card import write_card
from llava.model.loading.source import Source
from llava.model.push import make_repo, push_folder
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.checkpoints import resume_advice
from llava.train.checkpointing.resume import ELSEWHERE
from llava.train.checkpointing.save import require_space, write_output
from llava.train.checkpointing.verify import STATE_FILE
from llava.train.distributed import all_reduce_max, gather_objects
from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)

_WAIT_S, _POLL_S = 3600.0, 30.0  # how long to wait for room, and from one attempt to the next


def clear_result(trainer: LLaVATrainer) -> None:
    """Check that the result will fit on the disk, and remove the file that marks a run as finished.

    Raises:
        CheckpointError: The disk has too little space.
    """
    if trainer.args.should_save:
        output = Path(str(trainer.args.output_dir))
        require_space(trainer, output)
        for name in (STATE_FILE, ELSEWHERE):
            (output / name).unlink(missing_ok=True)


def save_result(trainer: LLaVATrainer, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Write the result and the state file that marks the run as finished, in the output folder or elsewhere.

    Args:
        trainer: A trainer that has trained. Every rank must call this.
        is_stopped: Whether a signal asks this process to stop; then it waits no longer for room.

    Raises:
        CheckpointError: The output folder cannot be written; the message says where the result is.
    """
    output = Path(str(trainer.args.output_dir))
    begun = time.monotonic()
    while (failure := _try_to_save(trainer, output)) is not None:
        if (spare := _save_elsewhere(trainer, output)) is not None:
            raise CheckpointError(
                f"{output}: could not be written ({failure}); the finished result is in {spare}: make room, "
                "and the same command moves it here",
                code="saved-elsewhere",
            )
        waited = time.monotonic() - begun
        (gives_up,) = all_reduce_max(int(is_stopped() or waited >= _WAIT_S))
        if gives_up:
            raise CheckpointError(
                f"{output}: the result could not be written ({failure}), nor could it in "
                f"{tempfile.gettempdir()}: make room; {resume_advice(trainer.checkpoints)}",
                code="not-writable",
            )
        logger.warning(
            "%s: could not be written (%s); make room: the next attempt is in %g s, for %.0f minutes more",
            *(output, failure, _POLL_S, (_WAIT_S - waited) / 60),
        )
        time.sleep(_POLL_S)


def make_hub_repo(training_args: TrainingArguments) -> None:
    """Make the repository that --push_to_hub names, private unless flags say otherwise.

    Called before the model is read, so that a wrong name or a missing token costs no training.

    Raises:
        CheckpointError: There is no token, or the hub refuses it or cannot be reached.
    """
    if training_args.pushes_to and training_args.process_index == 0:
        make_repo(training_args.pushes_to, private=training_args.hub_private_repo is not False)


def push_result(training_args: TrainingArguments) -> None:
    """Upload a finished run's result where --push_to_hub wants it.

    Raises:
        CheckpointError: The upload failed. The result is complete here.
    """
    if training_args.pushes_to and training_args.process_index == 0:
        output = Path(str(training_args.output_dir))
        try:
            logger.info("pushed to %s", push_folder(output, training_args.pushes_to))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. The result is complete in {output}: the same command, or `llava push {output} "
                f"{training_args.pushes_to}`, uploads it",
                code=error.code,
            ) from error


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
    is_split = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if is_ours and trainer.kind == "full" and not is_split:
        # Trained in fp32; the file has the compute precision, as DeepSpeed's and FSDP's have.
        trainer.model.to(trainer.args.compute_dtype)
    trainer.save_model(output_dir)


def _try_to_save(trainer: LLaVATrainer, folder: Path) -> str | None:
    """Write everything into a folder, or nothing; return the reason if some rank could not."""
    failure: str | None = None
    is_writer = trainer.args.should_save
    try:
        with write_output(folder, is_writer=is_writer) as staging:
            safe_save_model_for_hf_trainer(trainer, str(staging))
            if is_writer:
                base = str(trainer.model.config.name_or_path)
                made_of = Source(trainer.kind, Path(str(trainer.args.output_dir)), Path(base), staging, base)
                write_card(staging, made_of, kind=trainer.kind)
                trainer.state.save_to_json(str(staging / STATE_FILE))
    except CheckpointError as error:
        failure = one_line(error.__cause__ or error, 200)
    return next((each for each in gather_objects(failure) if each is not None), None)


def _save_elsewhere(trainer: LLaVATrainer, output: Path) -> Path | None:
    """Write the result into the temporary folder, and leave a link to it; return None if that fails too."""
    spare = Path(tempfile.gettempdir())
    if trainer.args.should_save:
        try:
            spare = Path(tempfile.mkdtemp(prefix=f"{output.name}-"))
        except OSError:
            spare /= "not-writable"
    if _try_to_save(trainer, spare) is not None:
        if trainer.args.should_save:
            shutil.rmtree(spare, ignore_errors=True)
        return None
    if trainer.args.should_save:
        try:
            (output / ELSEWHERE).unlink(missing_ok=True)
            (output / ELSEWHERE).symlink_to(spare)
        except OSError as error:
            logger.warning("%s: no link to %s could be made there (%s)", output, spare, error.strerror)
    spare, *_ = gather_objects(spare)
    return spare
