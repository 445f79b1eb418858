"""Who answers which questions, and how the parts become one file again. Needs no torch.

`python -m llava.infer.jobs.shards merge FOLDER --out FILE` joins the answers of all chunks, each question
exactly once and in the order asked; `... discard FOLDER` forgets a folder's answers; `... launched` prints
the chunk that torchrun or srun gave this process.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.command import run
from llava.errors import AnswersError, SettingsError
from llava.files import write_jsonl
from llava.infer.jobs.journal import Journal

logger = logging.getLogger(__name__)

JOURNAL = "journal"
"""What the journal of a folder of chunks is called."""

_POLL_S = 5.0

# Launchers that start one process a chunk, by their (count, index, index on this machine) variables.
_LAUNCHERS = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One process's share of the questions: number `index`, counted from 0, of `count`.

    `device` is the accelerator a launcher meant for this process on its machine; None where the caller chose
    one by CUDA_VISIBLE_DEVICES. `launched` says that the launcher, not a flag, named the chunk.
    """

    count: int = 1
    index: int = 0
    device: int | None = None
    launched: bool = False

    @property
    def name(self) -> str:
        """What files of this chunk are called, e.g. `4_0`."""
        return f"{self.count}_{self.index}"


def bounds(total: int, count: int, index: int) -> tuple[int, int]:
    """The half-open range that chunk `index` of `count` has of a line of `total` questions.

    Chunks hold ceil(total / count) questions, so 9 questions in 8 chunks fill five of them; the
    rest are empty, where the original failed. Source: LLaVA v1.2.2 llava/eval/model_vqa.py.
    """
    if count < 1 or not 0 <= index < count:
        raise SettingsError(
            f"--chunk-idx {index} of --num-chunks {count}: want 0 <= chunk-idx < num-chunks, counted from 0"
        )
    size = -(-total // count)
    return min(index * size, total), min((index + 1) * size, total)


def share(images: Sequence[Hashable], count: int, index: int) -> list[int]:
    """The positions of the questions that chunk `index` of `count` answers, in ascending order.

    The questions are lined up with all about one image side by side, images in the order in which they first
    come, and the line is cut by `bounds`: as many questions in a chunk as the original has, and at most
    count - 1 images asked about in two chunks. Where a file keeps an image's questions together (MME,
    TextVQA, VizWiz) the chunks are the original's. GQA's does not: cut as it stands, its 31.6 questions an
    image would be 4.3 in each of 8 chunks, and every image would be read by most of them.

    Args:
        images: What each question is about, in the order asked; None for one without an image.
        count: How many chunks there are.
        index: Which chunk, from 0.
    """
    first_seen: dict[Hashable, int] = {}
    places = [
        position if image is None else first_seen.setdefault(image, position)
        for position, image in enumerate(images)
    ]
    start, stop = bounds(len(images), count, index)
    return sorted(sorted(range(len(images)), key=places.__getitem__)[start:stop])


def choose_chunk(count: int | None, index: int | None, environment: Mapping[str, str] = os.environ) -> Chunk:
    """The chunk that flags name, else the one torchrun or srun gave this process, else all questions.

    Raises:
        SettingsError: The index lies outside the count.
    """
    if count is None and index is None:
        chunk = _launched(environment)
    else:
        chunk = Chunk(1 if count is None else count, index or 0)
    bounds(0, chunk.count, chunk.index)
    return chunk


def merge(folder: Path, out: Path, *, wait_s: float = 0.0) -> int:
    """Write the answers of all chunks to `out` in question order; the number of answers.

    Args:
        folder: The journal that the chunks answered into.
        out: The file to write; nothing is written unless every question has its answer.
        wait_s: How long to wait for answers that other machines still owe.

    Raises:
        AnswersError: A question has no answer, or two that differ.
    """
    deadline = time.monotonic() + wait_s
    said = False
    while True:
        journal = Journal.existing(folder)
        answers = journal.read()
        missing = [position for position in range(journal.total) if position not in answers]
        if not missing or time.monotonic() >= deadline:
            break
        if not said:
            logger.info(
                f"{folder}: waiting for {len(missing)} of {journal.total} answers from other processes"
            )
            said = True
        time.sleep(min(_POLL_S, wait_s))
    if missing:
        raise AnswersError(
            f"{folder}: {len(missing)} of {journal.total} questions have no answer, the first is number "
            f"{missing[0] + 1} of the question file; nothing was merged. Run the same command again: it asks "
            "only these"
        )
    journal.check_order(answers)
    write_jsonl(out, (answers[position].row for position in range(journal.total)))
    logger.info(f"{out}: {journal.total} answers")
    return journal.total


def _launched(environment: Mapping[str, str]) -> Chunk:
    for count_name, index_name, local_name in _LAUNCHERS:
        if count_name not in environment or index_name not in environment:
            continue
        if count_name.startswith("SLURM") and _is_batch_script(environment):
            continue
        try:
            count, index = int(environment[count_name]), int(environment[index_name])
            local = int(environment.get(local_name, "0"))
        except ValueError as error:
            raise SettingsError(f"{count_name} and {index_name} must be whole numbers: {error}") from error
        if count == 1:
            return Chunk()
        logger.info(f"chunk {index} of {count}, as {index_name} and {count_name} say")
        return Chunk(count, index, device=local, launched=True)
    return Chunk()


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    # A batch script itself sees SLURM_PROCID=0 and the job's task count, yet it is the only such process:
    # taking it for chunk 0 would leave the other chunks without anybody.
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llava.infer.jobs.shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    join = commands.add_parser("merge", help="join the answers of all chunks of a folder")
    join.add_argument("folder", type=Path, help="where the chunks wrote N_I.jsonl")
    join.add_argument("--out", type=Path, required=True, help="the merged file")
    join.add_argument("--wait-s", type=float, default=0.0, help="seconds to wait for other machines' answers")
    forget = commands.add_parser("discard", help="forget the answers of a folder, to ask everything again")
    forget.add_argument("folder", type=Path)
    commands.add_parser("launched", help="print count, index, index on this machine, as torchrun or srun say")
    flags = parser.parse_args()
    if flags.command == "launched":
        chunk = choose_chunk(None, None)
        sys.stdout.write(f"{chunk.count} {chunk.index} {chunk.device or 0}\n")
    elif flags.command == "merge":
        merge(flags.folder / JOURNAL, flags.out, wait_s=flags.wait_s)
    else:
        Journal.discard(flags.folder / JOURNAL)


if __name__ == "__main__":
    run(main)
