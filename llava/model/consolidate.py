"""COMMAND: a whole checkpoint written anew, in float16 and without its vision tower's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="folder or hub id of a whole model")
    parser.add_argument("--dst", required=True, type=Path, help="a folder that is not there yet")
    args = parser.parse_args()

    from llava.model.merge import consolidate  # after the flags: --help needs no torch

    consolidate(args.src, args.dst)


if __name__ == "__main__":
    run(main)
