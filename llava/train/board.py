"""TensorBoard's files, without which training goes on."""

from __future__ import annotations

import logging
from typing import Any

from transformers.integrations import TensorBoardCallback

logger = logging.getLogger(__name__)


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
