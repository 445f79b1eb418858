"""COMMAND: turn a published difference to LLaMA's weights into a model, by adding LLaMA's weights."""

from __future__ import annotations

import argparse

from llava.command import run
from llava.compat.deltas import apply_delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model-path", required=True, help="the LLaMA model")
    parser.add_argument("--target-model-path", required=True, help="the folder to write")
    parser.add_argument("--delta-path", required=True, help="the published difference")
    args = parser.parse_args()
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)


if __name__ == "__main__":
    run(main)
