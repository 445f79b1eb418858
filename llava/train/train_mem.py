"""Train with flash attention where it is installed and usable, else with PyTorch's own attention."""

from __future__ import annotations

import logging

from transformers.utils import is_flash_attn_2_available

from llava.command import run
from llava.train.train import train

logger = logging.getLogger(__name__)


def main() -> None:
    if is_flash_attn_2_available():
        train(attn_implementation="flash_attention_2")
        return
    logger.warning(
        "flash-attn is not installed, or there is no GPU for it: using PyTorch's own attention (SDPA)"
    )
    train(attn_implementation="sdpa")


if __name__ == "__main__":
    run(main)
