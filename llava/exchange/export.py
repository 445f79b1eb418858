"""COMMAND: write a model as a folder that transformers, vLLM and SGLang read.

llava export --model-path checkpoints/llava-v1.5-7b-lora --model-base lmsys/vicuna-7b-v1.5 --output hf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", default="hf", choices=["hf"], help="hf: LlavaForConditionalGeneration")
    parser.add_argument("--model-path", required=True, help="folder or hub id of a model or an adapter")
    parser.add_argument("--model-base", help="its base; what an adapter names by default")
    parser.add_argument("--output", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--conv-mode", help="the conversation template; the model's own by default")
    parser.add_argument(
        "--lora", default="merge", choices=["merge", "keep"], help="keep: write the adapter for PEFT beside"
    )
    parser.add_argument(
        "--scores", nargs="+", default=[], type=Path, help="metrics.json files for the model card"
    )
    args = parser.parse_args()

    from llava.exchange.hf_folder import export_hf  # after the flags: --help needs no torch

    export_hf(
        args.model_path,
        args.model_base,
        args.output,
        dtype=args.dtype,
        conv_mode=args.conv_mode,
        keep_adapter=args.lora == "keep",
        scores=args.scores,
    )


if __name__ == "__main__":
    run(main)
