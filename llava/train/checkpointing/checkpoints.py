"""Write a run's checkpoints: each is complete or absent, and older ones are removed only after it.

All ranks write checkpoint-N into a staging folder, which is flushed and renamed. If it cannot be written (the
disk is full, say), training continues with the checkpoints it has, and another attempt is made later.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments

from llava.errors import CheckpointError, one_line
from llava.files import publish_folder
from llava.temporary import STAGING
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.save import WRITE_ERRORS, remove_unfinished
from llava.train.checkpointing.signals import Signals
from llava.train.checkpointing.verify import list_checkpoints, step_of, write_checksums
from llava.train.distributed import all_reduce_max

logger = logging.getLogger(__name__)

RETRY_S = 300.0  # from a failed write to the next attempt


class Checkpoints:
    """The checkpoint-N folders of one output folder.

    Attributes:
        staging: Holds `checkpoint-N` while it is written; None at other times.
        has_failed: Whether the last write failed.
        is_temporary: Whether the next one serves only to resume and is removed after another one. Without
            --save_total_limit, those that --save_steps asks for are kept.
        are_weights_only: Whether --save_only_model leaves out what resuming needs.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.staging: Path | None = None
        self.has_failed = False
        self.is_temporary = False
        self.are_weights_only = args.save_only_model
        self._temporary: set[Path] = set()
        self._output = Path(str(args.output_dir))
        self._limit = args.save_total_limit or 0
        self._is_writer = args.should_save
        self._failure: Exception | None = None

    def newest(self) -> Path | None:
        """Return the checkpoint with the most steps."""
        return next(reversed(list_checkpoints(self._output)), None)

    def write(self, step: int, save: Callable[[], None], *, best: int | None = None) -> None:
        """Let `save` write `staging/checkpoint-STEP`, then publish that folder. Every rank must call this.

        Args:
            step: Number of optimizer steps done.
            save: Writes the files. It must wrap writes in `record_write_errors` before each collective, so
                that no rank waits for one that failed.
            best: The step whose checkpoint is kept, however old it is.
        """
        name = f"checkpoint-{step}"
        self.staging = self._output / f"{STAGING}checkpoint"
        try:
            self.has_failed = not all(
                self._succeeds(action, self.staging / name)
                for action in (self._prepare, lambda _: save(), self._publish)
            )
        finally:
            if self._is_writer:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        if self.has_failed:
            self._warn(name)
        elif self._is_writer:
            self._prune(self._output / name, self._output / f"checkpoint-{best}")

    @contextmanager
    def record_write_errors(self) -> Iterator[None]:
        """Record a write error instead of raising it, since other ranks may wait at a barrier."""
        try:
            yield
        except (*WRITE_ERRORS, CheckpointError) as error:
            self._failure = self._failure or error

    def _succeeds(self, action: Callable[[Path], None], folder: Path) -> bool:
        """Run one step of the write; return whether it succeeded on all ranks."""
        self._failure = None
        with self.record_write_errors():
            action(folder)
        (has_failed,) = all_reduce_max(int(self._failure is not None))
        return not has_failed

    def _prepare(self, folder: Path) -> None:
        if not self._is_writer:
            return
        if not self._output.is_dir():
            logger.warning("%s: was removed during the run; it is created again", self._output)
        remove_unfinished(self._output)
        folder.mkdir(parents=True)

    def _publish(self, folder: Path) -> None:
        if not self._is_writer:
            return
        write_checksums(folder)
        publish_folder(folder, self._output / folder.name)

    def _prune(self, written: Path, best: Path) -> None:
        """Remove older ones but the best. Each is renamed first, so that none looks complete that is not."""
        removed = self._output / f"{STAGING}old"
        self._set_aside(written)
        existing = list_checkpoints(self._output)
        superseded = {*existing[: -self._limit]} if self._limit > 0 else self._temporary & {*existing}
        self._temporary = (self._temporary & {best}) | ({written} if self.is_temporary else set())
        for checkpoint in superseded - {written, best}:
            try:
                checkpoint.replace(removed)
            except OSError as error:
                logger.warning("%s: could not be removed (%s)", checkpoint, error.strerror)
            shutil.rmtree(removed, ignore_errors=True)

    def _set_aside(self, written: Path) -> None:
        """Rename checkpoints with more steps than this run has done: it would be resumed from these."""
        for checkpoint in list_checkpoints(self._output):
            if step_of(checkpoint) <= step_of(written):
                continue
            names = (f"earlier-{number}-{checkpoint.name}" for number in count(1))
            kept = next(checkpoint.with_name(name) for name in names if not (self._output / name).exists())
            checkpoint.replace(kept)
            logger.warning("%s: is of an earlier run; it is now %s", checkpoint, kept.name)

    def _warn(self, name: str) -> None:
        if self._failure is None and not self._is_writer:
            return  # the rank that failed logs the reason
        cause = self._failure and (self._failure.__cause__ or self._failure)
        reason = one_line(cause, 200) if cause else "another rank failed to write"
        newest = self.newest()
        kept = f"the last complete one, {newest}, is kept" if newest else "there is no earlier one"
        logger.warning(
            "%s: could not be written (%s); %s. Make room: training continues, and the next attempt is in %g "
            "minutes, or when the next checkpoint is due",
            *(self._output / name, reason, kept, RETRY_S / 60),
        )


def resume_advice(checkpoints: Checkpoints) -> str:
    """Return how to go on with a run that ended early."""
    newest = checkpoints.newest()
    if newest is None:
        return "there is no checkpoint to resume from"
    if checkpoints.are_weights_only:
        return f"{newest} has its weights, but cannot be resumed (--save_only_model True)"
    return f"the same command resumes from {newest}"


class CheckpointCallback(TrainerCallback):
    """Requests a checkpoint every --save_minutes and before an early stop, on all ranks at the same step.

    Attributes:
        stop_signal: The signal that stopped training early; 0 if none did.
        has_refused: Whether a sample that some rank refused stopped it.
    """

    def __init__(
        self, checkpoints: Checkpoints, signals: Signals, minutes: float, refused: Sequence[str] = ()
    ) -> None:
        """Create a callback for one run.

        Args:
            checkpoints: Where they are written.
            signals: The signals that this process receives.
            minutes: Time between checkpoints; 0 for none.
            refused: The samples that this rank refuses; it may grow, and any entry stops all ranks.
        """
        self.stop_signal = 0
        self.has_refused = False
        self._checkpoints = checkpoints
        self._signals = signals
        self._refused = refused
        self._interval_s = minutes * 60 if minutes > 0 else float("inf")
        self._due_at = float("inf")

    def on_train_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        self._due_at = time.monotonic() + self._interval_s

    def on_step_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        # Clocks differ between ranks; rank 0's decides.
        is_due = state.is_world_process_zero and time.monotonic() >= self._due_at
        caught, due, refused = all_reduce_max(self._signals.caught, int(is_due), len(self._refused))
        self.has_refused = bool(refused)
        if state.global_step >= state.max_steps and not refused:
            return  # the final result is written next
        self._checkpoints.is_temporary = not control.should_save
        if caught or refused:
            self.stop_signal = caught
            control.should_training_stop = True
        if caught or refused or due:
            control.should_save = True

    def on_save(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        wait_s = min(self._interval_s, RETRY_S) if self._checkpoints.has_failed else self._interval_s
        self._due_at = time.monotonic() + wait_s

    def on_epoch_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        self._checkpoints.is_temporary = False
        if self.stop_signal or self.has_refused:
            control.should_save = False  # otherwise --save_strategy epoch saves the same step again
