"""Train with flash attention where it is installed and usable, else with PyTorch's own attention."""

from __future__ import annotations

import logging

from transformers.utils import is_flash_attn_2_available

from llava.command import run
from llava.train.distributed import destroy_process_group
from llava.train.train import quiet_libraries, train

logger = logging.getLogger("llava.train.train_mem")  # by path this module is __main__


def main() -> None:
    quiet_libraries()
    if is_flash_attn_2_available():
        train(attn_implementation="flash_attention_2")
    else:
        logger.warning(
            "flash-attn is not installed, or there is no GPU for it: using PyTorch's own attention (SDPA)"
        )
        train(attn_implementation="sdpa")
    destroy_process_group()


if __name__ == "__main__":
    run(main)
