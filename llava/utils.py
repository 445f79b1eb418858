"""The original's process helpers, under their original path."""

# Compatibility: kept for code that imports the original's name.

from __future__ import annotations

import logging
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

from llava.constants import LOGDIR


def disable_torch_init() -> None:
    """Do nothing: transformers 5 already creates models without initialising weights that it then loads.

    The original disables torch's initialisation for the whole process, also for layers created later.
    """


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """Return a logger that writes to stderr and to a file in LOGDIR that is rotated daily."""
    logger = logging.getLogger(logger_name)
    if logger.handlers:
        return logger
    path = Path(LOGDIR) / logger_filename
    path.parent.mkdir(parents=True, exist_ok=True)
    formatter = logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8"),
    ]
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger
