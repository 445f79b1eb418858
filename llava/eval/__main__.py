r"""Evaluate a model on benchmarks: from their data to metrics.json, submission files and the paper's row.

    llava eval seed mme --model-path ./checkpoints/llava-v1.5-7b

`all` stands for every benchmark whose data is there. The model is loaded once. A second run asks only what
has no answer yet. Under torchrun or srun each rank answers its shard; rank 0 merges and scores.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava import benchmarks
from llava.benchmarks import paper
from llava.benchmarks.base import EVAL_ROOT
from llava.benchmarks.evaluation import ModelEvaluation, require_model_name
from llava.command import run
from llava.errors import DataError, LlavaError, SettingsError, one_line
from llava.eval.backends import add_backend_flags, opened_vllm, vllm_choice
from llava.eval.questions import JobSettings, job_of, journal_of, read_asks
from llava.infer.jobs.flags import (
    add_batch_flags,
    add_model_flags,
    add_sampling_flags,
    generation_settings,
    model_choice,
)
from llava.infer.jobs.journal import Journal
from llava.infer.jobs.run import WAIT_FOR_SHARDS_S, answer, check_asks
from llava.infer.jobs.shards import Shard, choose_shard, merge_shards
from llava.schema import JsonObject, Scores

if TYPE_CHECKING:
    from llava.infer.engine.load import Loaded
    from llava.infer.engine.requests import ModelChoice

STEPS = ("prepare", "answer", "merge", "score", "submit")
logger = logging.getLogger("llava.eval")


def main() -> None:
    """Run the steps that the flags name for each benchmark; exit with 1 if one of several failed."""
    _, failed = evaluate(None)
    if failed:
        sys.stderr.write(f"error: failed, see the message of each above: {' '.join(failed)}\n")
        sys.exit(1)


def evaluate(argv: Sequence[str] | None) -> tuple[list[Scores], list[str]]:
    """Run the steps that the flags name for each benchmark, and print the scores.

    Args:
        argv: The flags of `llava eval`; the command line if None.

    Returns:
        The scores, and the names of the benchmarks that failed; a single one raises its error instead.

    Raises:
        LlavaError: A flag, a question, a model or an answer is wrong.
    """
    flags = parse_flags(argv)
    shard = choose_shard(flags.num_chunks, flags.chunk_idx)
    if flags.overwrite and shard.count > 1:
        raise SettingsError(
            "--overwrite is for one process; remove the earlier answers before several start",
            code="overwrite-with-shards",
        )
    targets = select_benchmarks(flags)
    if "prepare" in flags.steps:
        prepare(targets, overwrite=flags.overwrite)
    if "answer" in flags.steps:
        answer_questions(targets, job_settings(flags, shard))
    if shard.launched and shard.index > 0:
        return [], []
    wait_s = flags.wait_s if flags.wait_s is not None else WAIT_FOR_SHARDS_S if shard.launched else 0.0
    return finish(targets, flags.steps, name=flags.name, wait_s=wait_s)


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of `argv` (None: the command line)."""
    parser = argparse.ArgumentParser(
        prog="llava eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("benchmarks", nargs="+", metavar="NAME", help="`llava benchmarks list` shows them")
    parser.add_argument("--name", help="the model's name in files (default: the path's last part)")
    parser.add_argument("--eval-root", type=Path, default=EVAL_ROOT, help="holds the benchmarks' folders")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SPLIT",
        help="ask another split of a benchmark, by its name or its question file's",
    )
    parser.add_argument(
        "--steps",
        type=lambda text: text.split(","),
        default=STEPS,
        help=f"which steps to run (default: {','.join(STEPS)})",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="ask a sample of N questions, the same for every model; -limitN is added to the name",
    )
    parser.add_argument("--overwrite", action="store_true", help="discard earlier answers and results")
    parser.add_argument("--num-chunks", type=int, help="number of shards (default: of torchrun or srun)")
    parser.add_argument("--chunk-idx", type=int, help="which shard to answer, from 0")
    parser.add_argument("--wait-s", type=float, help="how long merging waits for other processes' answers")
    add_model_flags(parser)
    parser.add_argument("--conv-mode", default="vicuna_v1", help="conversation template")
    parser.add_argument("--max_new_tokens", type=int, help="longest answer (default: the benchmark's)")
    add_sampling_flags(parser)
    add_batch_flags(parser)
    add_backend_flags(parser)
    parser.set_defaults(temperature=0.0)
    flags = parser.parse_args(argv)
    if unknown := [step for step in flags.steps if step not in STEPS]:
        parser.error(f"--steps: no step {unknown[0]!r}; there are: {','.join(STEPS)}")
    if flags.name is None:
        flags.name = Path(flags.model_path).name
    if flags.limit is not None:
        if flags.limit < 1:
            raise SettingsError(f"--limit {flags.limit}: want at least 1", code="out-of-range")
        flags.name += f"-limit{flags.limit}"
    require_model_name(flags.name)
    return flags


def select_benchmarks(flags: argparse.Namespace) -> dict[str, ModelEvaluation]:
    """Return the evaluations that the flags ask for, by the names given.

    Raises:
        SettingsError: A name or split is unknown.
        DataError: A named benchmark lacks its data, or `all` finds none.
    """
    splits = {}
    for word in flags.split:
        name, _, split = word.partition("=")
        splits[benchmarks.get(name).name] = split
    is_all = "all" in flags.benchmarks
    names = benchmarks.names() if is_all else list(dict.fromkeys(flags.benchmarks))
    found = {}
    for name in names:
        split = splits.get(benchmarks.get(name).name)
        found[name] = benchmarks.evaluation_of(name, split, flags.eval_root, flags.name, flags.limit)
    needs_data = {"prepare", "answer"} & set(flags.steps)
    lacking = {}
    for name, target in found.items() if is_all or needs_data else ():
        try:
            target.check_data()
        except DataError as error:
            lacking[name] = str(error)
    if lacking and not is_all:
        raise DataError("; ".join(lacking.values()), code="missing-download")
    if "prepare" in flags.steps:
        for message in lacking.values():
            logger.warning(f"left out: {message}")
    if len(lacking) == len(found):
        raise DataError(f"{flags.eval_root}: no benchmark's data is here", code="missing-download")
    return {name: target for name, target in found.items() if name not in lacking}


def prepare(targets: dict[str, ModelEvaluation], *, overwrite: bool) -> None:
    """Write missing question files; with `overwrite`, discard this model's earlier answers and results."""
    for target in targets.values():
        target.prepare()
    for target in targets.values() if overwrite else ():
        Journal.discard(journal_of(target))
        target.remove_results()


def job_settings(flags: argparse.Namespace, shard: Shard) -> JobSettings:
    """Return what the flags say about answering."""
    limit: int | None = flags.max_new_tokens
    generation = generation_settings(flags, max_new_tokens=1 if limit is None else limit)
    return JobSettings(
        model=model_choice(flags),
        generation=generation,
        max_new_tokens=limit,
        conv_mode=flags.conv_mode,
        shard=shard,
        batch_size=flags.batch_size,
        exact=flags.exact,
        vllm=vllm_choice(flags, generation, launched=shard.launched),
    )


def answer_questions(targets: dict[str, ModelEvaluation], settings: JobSettings) -> None:
    """Answer this process's shard of every benchmark, with the model loaded once.

    Every question of every benchmark is checked first: a damaged file or a missing image should stop all
    processes before hours of answering.
    """
    jobs = [(name, job_of(target, settings), read_asks(target)) for name, target in targets.items()]
    for _, job, asks in jobs:
        check_asks(job, asks, range(len(asks)))

    @functools.lru_cache(maxsize=1)
    def load_once(choice: ModelChoice) -> Loaded:
        from llava.infer.engine.load import load  # imports torch; only if there is something to ask

        return load(choice)

    if settings.vllm is not None:
        with opened_vllm(settings.vllm, load_once) as open_vllm:
            for name, job, asks in jobs:
                logger.info(f"{name}: {len(asks)} questions")
                answer(job, asks, open_first=open_vllm)
    for name, job, asks in jobs:
        logger.info(f"{name}: {len(asks)} questions")
        answer(job, asks, load_once)


def finish(
    targets: dict[str, ModelEvaluation], steps: Sequence[str], *, name: str, wait_s: float
) -> tuple[list[Scores], list[str]]:
    """Merge, submit and score every benchmark, and print the paper's row of the model `name`.

    With several benchmarks an error of one, or a bug in its code, is printed and the others go on.

    Returns:
        The scores, and the names of the benchmarks that failed.
    """
    scored, failed = [], []
    for benchmark, target in targets.items():
        work = functools.partial(finish_one, target, steps, wait_s)
        try:
            scores = work() if len(targets) == 1 else _printing_errors(work)
        except _FailedError:
            failed.append(benchmark)
            continue
        if scores is not None:
            scored.append(scores)
    if any(scores.benchmark in paper.BENCHMARKS for scores in scored):
        sys.stdout.write(paper.table(name, scored) + "\n")
    return scored, failed


def finish_one(target: ModelEvaluation, steps: Sequence[str], wait_s: float) -> Scores | None:
    """Merge, submit and score one benchmark, as `steps` say; return its scores if there are any."""
    if "merge" in steps:
        merge_shards(journal_of(target), target.merged, wait_s=wait_s)
    if "submit" in steps:
        target.submit()
    if "score" not in steps:
        return None
    run_file = journal_of(target) / "run.json"
    extra: JsonObject = {}
    if run_file.is_file():
        extra["rounding"] = Journal.existing(run_file.parent).rounding()
    return target.score(answered_at=run_file, extra=extra)


class _FailedError(Exception):
    """A benchmark failed, and the reason is printed."""


def _printing_errors(work: Callable[[], Scores | None]) -> Scores | None:
    try:
        return work()
    except (LlavaError, OSError) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        raise _FailedError from error
    except Exception as error:
        traceback.print_exc()
        raise _FailedError from error


if __name__ == "__main__":
    run(main)
