"""COMMAND: run several answering commands in one process, which loads the model once for all of them.

    python -m llava.eval.model_vqa_all --num-chunks 8 --chunk-idx 0 seed.job gqa.job

A job is a file with the words of one command, each ended by a NUL: the module, the folder of its chunk files,
its flags. `scripts/v1_5/eval/all.sh` writes them. A job with nothing left to ask costs nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
from pathlib import Path
from typing import Any

from llava.command import run
from llava.errors import SettingsError
from llava.infer.jobs.run import answer, check_asks

MODULES = ("model_vqa", "model_vqa_loader", "model_vqa_mmbench", "model_vqa_science")
logger = logging.getLogger(__name__)


def read_words(job: Path) -> tuple[str, str, list[str]]:
    """The module, the folder for chunk files and the flags that a job file names.

    Raises:
        SettingsError: It is no job file, or names no answering command.
    """
    words = job.read_text(encoding="utf-8").split("\0")[:-1]
    known = [f"llava.eval.{name}" for name in MODULES]
    if len(words) < 2 or words[0] not in known:
        raise SettingsError(f"{job}: no job; wanted one of {', '.join(known)}, a folder, and flags")
    return words[0], words[1], words[2:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0, help="which chunk to answer, from 0")
    parser.add_argument("jobs", nargs="+", type=Path, metavar="JOB")
    flags = parser.parse_args()
    chunk = f"{flags.num_chunks}_{flags.chunk_idx}.jsonl"
    # Read and checked first, every chunk: a damaged question file or a missing image should be known by all
    # processes before hours of answering.
    jobs = []
    for job in flags.jobs:
        module, folder, words = read_words(job)
        words += ["--answers-file", f"{folder}/{chunk}"]
        words += ["--num-chunks", str(flags.num_chunks), "--chunk-idx", str(flags.chunk_idx)]
        jobs.append((job.stem, *importlib.import_module(module).read_job(words)))

    for _, asked, asks in jobs:
        check_asks(asked, asks, range(len(asks)))

    @functools.lru_cache(maxsize=1)
    def load_once(choice: Any) -> Any:
        from llava.infer.engine.load import load  # torch, only where there is something to ask

        return load(choice)

    for name, asked, asks in jobs:
        logger.info(f"{name}: {len(asks)} questions")
        answer(asked, asks, load_once)


if __name__ == "__main__":
    run(main)
