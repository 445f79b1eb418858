"""Choose where metrics are reported; W&B's run goes on after a resume, TensorBoard's errors stop nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

from llava.files import atomic_write

if TYPE_CHECKING:  # arguments imports this module
    from llava.train.arguments import TrainingArguments

WANDB_RUN = "wandb_run_id"  # the file of an output folder that names its run on W&B

logger = logging.getLogger(__name__)


def choose_reporters(wanted: Sequence[str] | str | None) -> tuple[list[str], list[str]]:
    """Return the reporters to use, and an error message for each wanted one that is not installed."""
    installed = get_available_reporting_integrations()
    if wanted is None:
        return ["tensorboard"] if "tensorboard" in installed else [], []
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if "none" in names:
        return [], []
    if "all" in names:
        return list(installed), []
    choices = ", ".join(installed)
    missing = [
        f"--report_to {name}: not installed; pip install {name}, or choose from: {choices}, none"
        for name in names
        if name not in installed
    ]
    return [name for name in names if name in installed], missing


@contextmanager
def kept_wandb_run(args: TrainingArguments, *, is_resumed: bool) -> Iterator[None]:
    """Within the block, let W&B go on with the run that this output folder began, or begin one.

    The run's id is kept in the output folder. If WANDB_RUN_ID or WANDB_RESUME is set, that decides instead.

    Args:
        args: Rank 0 reports to W&B if `report_to` names it.
        is_resumed: Whether training goes on from a checkpoint; otherwise it is a new run.
    """
    settings = ("WANDB_RUN_ID", "WANDB_RESUME")
    if "wandb" not in (args.report_to or ()) or args.process_index != 0 or any(map(os.environ.get, settings)):
        yield
        return
    path = Path(str(args.output_dir)) / WANDB_RUN
    if not (is_resumed and path.is_file()):
        with atomic_write(path) as stream:
            stream.write(uuid4().hex)
    os.environ |= dict(zip(settings, (path.read_text(encoding="utf-8").strip(), "allow"), strict=True))
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)


class LenientTensorBoard(TensorBoardCallback):
    """transformers' TensorBoard callback, except that a write error ends the curves and not the run."""

    def on_train_begin(self, *args: object, **rest: object) -> None:
        self._try(super().on_train_begin, *args, **rest)

    def on_log(self, *args: object, **rest: object) -> None:
        self._try(super().on_log, *args, **rest)

    def on_train_end(self, *args: object, **rest: object) -> None:
        self._try(super().on_train_end, *args, **rest)

    def _try(self, write: Callable[..., None], *args: object, **rest: object) -> None:
        try:
            write(*args, **rest)
        except OSError as error:
            logger.warning(
                "%s: TensorBoard's file cannot be written (%s); its curves end here, training continues",
                *(self.logging_dir, error.strerror or error),
            )
            self.tb_writer = self._SummaryWriter = None  # so that transformers makes no new writer
