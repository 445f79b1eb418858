"""Which process answers which questions, and how the shards' answers become one file. Needs no torch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import AnswersError, SettingsError
from llava.files import write_jsonl
from llava.infer.jobs.journal import Journal

logger = logging.getLogger(__name__)

JOURNAL = "journal"
"""The name of the journal in a folder of shards."""

_POLL_S = 5.0

# Launchers that start one process for each shard, by their (count, index, index on this machine) variables.
_LAUNCHERS = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's share of a question file: number `index`, from 0, of `count`.

    Attributes:
        count: How many shards there are.
        index: Which one this is.
        device: The accelerator that a launcher gave this process; None if CUDA_VISIBLE_DEVICES chose it.
        launched: Whether a launcher, not a flag, named the shard.
    """

    count: int = 1
    index: int = 0
    device: int | None = None
    launched: bool = False

    @property
    def name(self) -> str:
        """The name of this shard's files, such as `4_0`."""
        return f"{self.count}_{self.index}"


def shard_bounds(total: int, count: int, index: int) -> tuple[int, int]:
    """Return the half-open range of `total` sorted questions that shard `index` of `count` answers.

    A shard holds ceil(total / count) questions, so 9 questions fill 5 of 8 shards. The others are empty; the
    original failed there. Source: LLaVA v1.2.2 llava/eval/model_vqa.py.
    """
    if count < 1 or not 0 <= index < count:
        raise SettingsError(
            f"--chunk-idx {index} of --num-chunks {count}: want 0 <= chunk-idx < num-chunks, counted from 0",
            code="bad-shard",
        )
    size = -(-total // count)
    return min(index * size, total), min((index + 1) * size, total)


def shard_positions(images: Sequence[Hashable], count: int, index: int) -> list[int]:
    """Return the positions of the questions that shard `index` of `count` answers, in ascending order.

    Questions are sorted so that all about one image stand together, images in order of first appearance, and
    then cut by `shard_bounds`. A shard has as many questions as the original's, and at most count - 1 images
    belong to two shards. Where a file keeps an image's questions together (MME, TextVQA, VizWiz) the shards
    are the original's. GQA does not: cut in file order, the 31.6 questions of an image would fall into all 8
    shards, and most shards would read every image.

    Args:
        images: The image of each question, in question order; None for a question without one.
        count: How many shards there are.
        index: Which shard, from 0.
    """
    first_seen: dict[Hashable, int] = {}
    order = [
        position if image is None else first_seen.setdefault(image, position)
        for position, image in enumerate(images)
    ]
    start, stop = shard_bounds(len(images), count, index)
    return sorted(sorted(range(len(images)), key=order.__getitem__)[start:stop])


def choose_shard(count: int | None, index: int | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard that flags name, else the one of torchrun or srun, else all questions.

    Raises:
        SettingsError: The index lies outside the count.
    """
    if count is None and index is None:
        shard = _launched_shard(environment)
    else:
        shard = Shard(1 if count is None else count, index or 0)
    shard_bounds(0, shard.count, shard.index)
    return shard


def merge_shards(folder: Path, out: Path, *, wait_s: float = 0.0) -> int:
    """Write the answers of all shards to `out` in question order and return their number.

    Args:
        folder: The journal that the shards wrote.
        out: The file to write, only if every question has its answer.
        wait_s: How long to wait for the answers of other machines.

    Raises:
        AnswersError: A question has no answer, or two that differ.
    """
    deadline = time.monotonic() + wait_s
    is_reported = False
    while True:
        journal = Journal.existing(folder)
        answers = journal.read()
        missing = [position for position in range(journal.total) if position not in answers]
        if not missing or time.monotonic() >= deadline:
            break
        if not is_reported:
            logger.info(
                f"{folder}: waiting for {len(missing)} of {journal.total} answers from other processes"
            )
            is_reported = True
        time.sleep(min(_POLL_S, wait_s))
    if missing:
        raise AnswersError(
            f"{folder}: {len(missing)} of {journal.total} questions have no answer, the first is number "
            f"{missing[0] + 1} of the question file; nothing was merged. Run the same command again: it asks "
            "only these",
            code="missing-answers",
        )
    journal.check_order(answers)
    write_jsonl(out, (answers[position].row for position in range(journal.total)))
    logger.info(f"{out}: {journal.total} answers")
    return journal.total


def _launched_shard(environment: Mapping[str, str]) -> Shard:
    for count_name, index_name, local_name in _LAUNCHERS:
        if count_name not in environment or index_name not in environment:
            continue
        if count_name.startswith("SLURM") and _is_batch_script(environment):
            continue
        try:
            count, index = int(environment[count_name]), int(environment[index_name])
            local = int(environment.get(local_name, "0"))
        except ValueError as error:
            raise SettingsError(
                f"{count_name} and {index_name} must be whole numbers: {error}", code="bad-launcher-variable"
            ) from error
        if count == 1:
            return Shard()
        logger.info(f"shard {index} of {count}, by {index_name} and {count_name}")
        return Shard(count, index, device=local, launched=True)
    return Shard()


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    # A batch script sees SLURM_PROCID=0 and the job's task count, yet it is the only process: as shard 0 it
    # would leave the other shards to nobody.
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
