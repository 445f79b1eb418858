"""COMMAND: upload a model's folder to the Hugging Face Hub.

llava push checkpoints/llava-v1.5-7b-lora OWNER/NAME --create
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what training, `llava merge` or `llava export` wrote")
    parser.add_argument("repo", help="OWNER/NAME of a repository on the hub")
    parser.add_argument("--create", action="store_true", help="make the repository, private, if missing")
    parser.add_argument("--revision", help="a branch of it; main by default")
    args = parser.parse_args()

    from llava.model.push import make_repo, push_folder  # after the flags: --help needs no hub

    if args.create:
        make_repo(args.repo, private=True)
    sys.stdout.write(f"{push_folder(args.folder, args.repo, revision=args.revision)}\n")


if __name__ == "__main__":
    run(main)
