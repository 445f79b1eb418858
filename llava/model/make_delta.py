"""COMMAND: write the difference between a model and the LLaMA model that it was trained from."""

from __future__ import annotations

import argparse

from llava.command import run
from llava.compat.deltas import make_delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model-path", required=True, help="the LLaMA model")
    parser.add_argument("--target-model-path", required=True, help="the trained model")
    parser.add_argument("--delta-path", required=True, help="the folder to write")
    parser.add_argument("--hub-repo-id", help="also upload it to this repository of the hub")
    args = parser.parse_args()
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)


if __name__ == "__main__":
    run(main)
