"""Train with flash attention where it is installed and usable, else with PyTorch's own attention."""

from __future__ import annotations

from llava.train.flags import answer_help

if __name__ == "__main__":
    answer_help()  # at once; what follows takes seconds to import

import logging

import torch
from transformers.utils import is_flash_attn_2_available

from llava.command import run
from llava.train.distributed import destroy_process_group
from llava.train.train import train

logger = logging.getLogger("llava.train.train_mem")  # by path this module is __main__


def main() -> None:
    has_flash = is_flash_attn_2_available()
    if not has_flash and torch.cuda.is_available():
        logger.warning("flash-attn is not installed: using PyTorch's own attention (SDPA)")
    train(attn_implementation="flash_attention_2" if has_flash else "sdpa")
    destroy_process_group()


if __name__ == "__main__":
    run(main)
