"""The command `llava plan`: what training needs, in seconds and without its weights.

    llava plan SCRIPT [FLAG...]      a training script, with its settings and flags
    llava plan FLAG...               the flags of `llava train`

Flags besides those of training: --gpu 24GB or --gpu A100, --gpus 2 (otherwise this machine's), and
--rate, the samples a second or the output folder of an earlier run, from which the hours follow.
"""

from __future__ import annotations

import os
import sys

from llava.command import run


def main() -> None:
    words = sys.argv[1:]
    if not words or not {"-h", "--help"}.isdisjoint(words):
        sys.stdout.write(f"usage: {__doc__}")
        return
    if words[0].endswith(".sh"):
        os.execvp("bash", ["bash", *words, "--dry_run", "True"])

    from llava.train.train import train  # torch, which --help need not wait for

    train(argv=[*words, "--dry_run", "True"])


if __name__ == "__main__":
    run(main)
