"""COMMAND: rewrite a full checkpoint in float16, without its vision tower's weights."""

from __future__ import annotations

import argparse

from llava.command import run
from llava.compat.deltas import consolidate_ckpt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="folder or hub id of a full model")
    parser.add_argument("--dst", required=True, help="a folder that does not exist yet")
    args = parser.parse_args()
    consolidate_ckpt(args.src, args.dst)


if __name__ == "__main__":
    run(main)
