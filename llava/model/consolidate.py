"""COMMAND: rewrite a full checkpoint in float16, without its vision tower's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="folder or hub id of a full model")
    parser.add_argument("--dst", required=True, type=Path, help="a folder that does not exist yet")
    args = parser.parse_args()

    from llava.model.merge import consolidate  # imports torch, which --help does not need

    consolidate(args.src, args.dst)


if __name__ == "__main__":
    run(main)
