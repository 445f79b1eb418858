"""Checkpoints of a run: each is there whole or not at all, and only then do older ones go.

All processes write a checkpoint-N into a folder beside; it is brought to the disk, then renamed. If it cannot
be written (a full disk, say), the run goes on with the checkpoints it has, and tries again.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llava.errors import CheckpointError
from llava.files import STAGING, publish_folder
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.resume import STATE_FILE
from llava.train.checkpointing.save import WRITE_ERRORS, remove_unfinished
from llava.train.checkpointing.signals import Signals
from llava.train.distributed import all_reduce_max

logger = logging.getLogger(__name__)

RETRY_S = 300.0  # after a checkpoint that could not be written


class Checkpoints:
    """The checkpoint-N folders of one output folder.

    Attributes:
        staging: Where the next one is being written, as `staging/checkpoint-N`; None between two.
        has_failed: Whether the last one could not be written.
        is_passing: Whether the next one is for resuming alone, and goes when another is there; those that
            --save_steps asks for stay, if there is no --save_total_limit.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.staging: Path | None = None
        self.has_failed = False
        self.is_passing = False
        self._passing: set[Path] = set()
        self._output = Path(str(args.output_dir))
        self._limit = args.save_total_limit or 0
        self._is_writer = args.should_save
        self._failure: Exception | None = None

    def newest(self) -> Path | None:
        """The checkpoint written last."""
        return next(reversed(self._oldest_first()), None)

    def write(self, step: int, save: Callable[[], None]) -> None:
        """Have `save` write into `staging/checkpoint-STEP`, and put that in its place.

        Every process must call this.

        Args:
            step: Optimizer steps done.
            save: Write the files; catch write errors by `record_write_errors` before each collective, so
                that no rank waits for one that failed.
        """
        name = f"checkpoint-{step}"
        self.staging = self._output / f"{STAGING}checkpoint"
        try:
            self.has_failed = not all(
                self._succeeds(part, self.staging / name)
                for part in (self._prepare, lambda _: save(), self._publish)
            )
        finally:
            if self._is_writer:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        if self.has_failed:
            self._warn(name)
        elif self._is_writer:
            self._prune(self._output / name)

    @contextmanager
    def record_write_errors(self) -> Iterator[None]:
        """An error of writing ends the block, not the run: other processes may wait behind it."""
        try:
            yield
        except (*WRITE_ERRORS, CheckpointError) as error:
            self._failure = self._failure or error

    def _succeeds(self, part: Callable[[Path], None], folder: Path) -> bool:
        """Whether a part of the work is done on all processes."""
        self._failure = None
        with self.record_write_errors():
            part(folder)
        (somewhere,) = all_reduce_max(int(self._failure is not None))
        return not somewhere

    def _prepare(self, folder: Path) -> None:
        if not self._is_writer:
            return
        if not self._output.is_dir():
            logger.warning("%s: has vanished, and is made anew", self._output)
        remove_unfinished(self._output)
        folder.mkdir(parents=True)

    def _publish(self, folder: Path) -> None:
        if not self._is_writer:
            return
        publish_folder(folder, self._output / folder.name)

    def _prune(self, written: Path) -> None:
        """Remove what `written` makes needless. Renamed first: none ever looks whole that is not."""
        gone = self._output / f"{STAGING}old"
        there = self._oldest_first()
        needless = there[: -self._limit] if self._limit > 0 else self._passing & {*there} - {written}
        self._passing = {written} if self.is_passing else set()
        for checkpoint in needless:
            try:
                checkpoint.replace(gone)
            except OSError as error:
                logger.warning("%s: could not be removed (%s)", checkpoint, error.strerror)
            shutil.rmtree(gone, ignore_errors=True)

    def _oldest_first(self) -> list[Path]:
        # By time, not by number: training anew over an old run starts from small numbers.
        states = [path / STATE_FILE for path in self._output.glob("checkpoint-*")]
        states = [state for state in states if state.is_file()]
        return [state.parent for state in sorted(states, key=lambda state: state.stat().st_mtime_ns)]

    def _warn(self, name: str) -> None:
        if self._failure is None and not self._is_writer:
            return  # who failed says why
        cause = self._failure and (self._failure.__cause__ or self._failure)
        reason = " ".join(str(cause or "another process could not write").split())[:200]
        newest = self.newest()
        kept = f"the last good one, {newest}, is kept" if newest else "there is none before it"
        logger.warning(
            "%s: could not be written (%s); %s. Make room: training goes on, and another try is made in %g "
            "minutes, or when the next is due",
            *(self._output / name, reason, kept, RETRY_S / 60),
        )


class CheckpointCallback(TrainerCallback):
    """Asks for a checkpoint when --save_minutes are over and before leaving, all processes at once.

    Attributes:
        stop_signal: The signal for which training was ended early.
        has_refused: Whether it was for a sample that one of the processes refused.
    """

    def __init__(
        self, checkpoints: Checkpoints, signals: Signals, minutes: float, refused: Sequence[str] = ()
    ) -> None:
        """Begin to watch.

        Args:
            checkpoints: How they are written.
            signals: What asks this process to leave.
            minutes: From one checkpoint to the next; 0 for none.
            refused: What this process refuses, once there is something; all leave for it.
        """
        self.stop_signal = 0
        self.has_refused = False
        self._checkpoints = checkpoints
        self._signals = signals
        self._refused = refused
        self._interval_s = minutes * 60 if minutes > 0 else float("inf")
        self._due_at = float("inf")

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._due_at = time.monotonic() + self._interval_s

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # Clocks differ: the first process's decides.
        is_due = state.is_world_process_zero and time.monotonic() >= self._due_at
        caught, due, refused = all_reduce_max(self._signals.caught, int(is_due), len(self._refused))
        self.has_refused = bool(refused)
        if state.global_step >= state.max_steps and not refused:
            return  # the result itself is written next
        self._checkpoints.is_passing = not control.should_save
        if caught or refused:
            self.stop_signal = caught
            control.should_training_stop = True
        if caught or refused or due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        wait_s = min(self._interval_s, RETRY_S) if self._checkpoints.has_failed else self._interval_s
        self._due_at = time.monotonic() + wait_s

    def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._checkpoints.is_passing = False
        if self.stop_signal or self.has_refused:
            control.should_save = False  # --save_strategy epoch would save the same step again
