"""FACADE: two helpers that code written for the original calls."""

from __future__ import annotations

import logging
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

from llava.constants import LOGDIR


def disable_torch_init() -> None:
    """Does nothing: transformers 5 makes models without first filling them with random numbers.

    The original switched torch's initialisation off for the whole process, also for layers made afresh later.
    """


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """A logger that writes to stderr and to a file in LOGDIR, a new one every day."""
    logger = logging.getLogger(logger_name)
    if logger.handlers:
        return logger
    path = Path(LOGDIR) / logger_filename
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8"),
    ]
    for handler in handlers:
        handler.setFormatter(shape)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger
