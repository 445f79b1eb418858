"""Choose where metrics are reported; an error of TensorBoard never stops training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

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
