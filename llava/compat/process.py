"""What the original's serving programs need: a log, OpenAI's moderation, a semaphore's state."""

from __future__ import annotations

import logging
import os
from asyncio import Semaphore
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

from llava.constants import LOGDIR

server_error_msg = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
moderation_msg = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."

MODERATION_URL = "https://api.openai.com/v1/moderations"
_TIMEOUT_S = 5


def disable_torch_init() -> None:
    """Do nothing: transformers 5 already creates models without initialising weights that it then loads.

    The original disables torch's initialisation for the whole process, also for layers created later.
    """


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """Return a logger that writes to stderr and to a file in LOGDIR that is rotated daily.

    Unlike the original's, it leaves `sys.stdout`, `sys.stderr` and all other loggers alone.
    """
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


def violates_moderation(text: str) -> bool:
    """Return whether OpenAI's moderation flags `text`; False if the service cannot be reached.

    Raises:
        KeyError: The environment variable OPENAI_API_KEY is not set.
    """
    import requests

    key = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    asked = {"input": text.replace("\n", "")}
    try:
        reply = requests.post(MODERATION_URL, headers=key, json=asked, timeout=_TIMEOUT_S).json()
        return bool(reply["results"][0]["flagged"])
    except (requests.RequestException, KeyError):
        return False


def pretty_print_semaphore(semaphore: Semaphore | None) -> str:
    """Return a semaphore's free places and whether it is taken, for a log."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"
