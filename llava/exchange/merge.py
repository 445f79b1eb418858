"""COMMAND: merge a LoRA adapter into its base, on the CPU, and write the whole model with a model card.

llava merge --model-path checkpoints/llava-v1.5-7b-lora --output checkpoints/llava-v1.5-7b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True, help="folder or hub id of the adapter")
    parser.add_argument(
        "--model-base", help="folder or hub id of its base; what the adapter names by default"
    )
    parser.add_argument(
        *("--output", "--save-model-path"), required=True, type=Path, help="a folder that does not exist yet"
    )
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--scores", nargs="+", default=[], type=Path, help="metrics.json files for the model card"
    )
    args = parser.parse_args()

    from llava.model.merge import merge_lora  # after the flags: --help needs no torch

    merge_lora(
        args.model_path,
        args.model_base,
        args.output,
        dtype=args.dtype,
        device=args.device,
        scores=args.scores,
    )


if __name__ == "__main__":
    run(main)
