"""Where metrics go; and TensorBoard's files, without which training goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations

logger = logging.getLogger(__name__)


def choose_reporters(wanted: Sequence[str] | str | None) -> tuple[list[str], list[str]]:
    """Where metrics go, of what is installed; and what is wrong with what else is asked for."""
    installed = get_available_reporting_integrations()
    if wanted is None:
        return ["tensorboard"] if "tensorboard" in installed else [], []
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if "none" in names:
        return [], []
    if "all" in names:
        return list(installed), []
    there = ", ".join(installed)
    missing = [
        f"--report_to {name}: not installed; pip install {name}, or choose from: {there}, none"
        for name in names
        if name not in installed
    ]
    return [name for name in names if name in installed], missing


class LenientTensorBoard(TensorBoardCallback):
    """As transformers', but a disk that is full ends the curves, not the run."""

    def on_train_begin(self, *args: Any, **rest: Any) -> None:
        self._try(super().on_train_begin, *args, **rest)

    def on_log(self, *args: Any, **rest: Any) -> None:
        self._try(super().on_log, *args, **rest)

    def on_train_end(self, *args: Any, **rest: Any) -> None:
        self._try(super().on_train_end, *args, **rest)

    def _try(self, write: Any, *args: Any, **rest: Any) -> None:
        try:
            write(*args, **rest)
        except OSError as error:
            logger.warning(
                "%s: TensorBoard's file cannot be written (%s); its curves end here, training goes on",
                *(self.logging_dir, error.strerror or error),
            )
            self.tb_writer = self._SummaryWriter = None  # transformers makes no other writer then
