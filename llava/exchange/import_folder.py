"""COMMAND: turn a folder of transformers' LLaVA into the original's format.

llava import --model-path llava-hf/llava-1.5-7b-hf --output checkpoints/llava-v1.5-7b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model-path", required=True, help="folder or hub id, such as llava-hf/llava-1.5-7b-hf"
    )
    parser.add_argument("--output", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--tokenizer",
        help="folder or hub id with the language model's tokenizer.model, if the folder has none",
    )
    args = parser.parse_args()

    from llava.exchange.hf_folder import import_hf  # after the flags: --help needs no torch

    import_hf(args.model_path, args.output, tokenizer=args.tokenizer)


if __name__ == "__main__":
    run(main)
