"""Join a benchmark with the engine: what to ask for its questions, and as which job."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.benchmarks.evaluation import ModelEvaluation
from llava.eval.backends import VLLM, VllmChoice
from llava.eval.model_vqa import read_jsonl_asks
from llava.eval.model_vqa_mmbench import read_mmbench_asks
from llava.eval.model_vqa_science import read_conversation_asks
from llava.infer.engine.requests import Generation, ModelChoice
from llava.infer.jobs.run import AnswerJob, Ask
from llava.infer.jobs.shards import JOURNAL, Shard


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the flags say about answering; a benchmark gives the rest.

    Attributes:
        model: The model.
        generation: How answers are generated, apart from their length.
        max_new_tokens: The longest answer; None is the benchmark's own limit.
        conv_mode: The conversation template.
        shard: Which questions this process answers.
        batch_size: Most prompts in a batch; None is as many as fit.
        exact: Whether to ask again on its own where a batch could have changed the answer.
        vllm: Where vLLM runs, which answers before the engine does; None for the engine alone.
    """

    model: ModelChoice
    generation: Generation
    max_new_tokens: int | None
    conv_mode: str
    shard: Shard
    batch_size: int | None
    exact: bool
    vllm: VllmChoice | None = None


def journal_of(target: ModelEvaluation) -> Path:
    """Return the folder of the journal of an evaluation's answers."""
    return target.answers / JOURNAL


def read_asks(target: ModelEvaluation) -> list[Ask]:
    """Return what to ask for the questions of an evaluation, in order; a sample of them if it is limited."""
    asks = _read_all_asks(target)
    return asks if target.limit is None else sample_asks(asks, target)


def sample_asks(asks: Sequence[Ask], target: ModelEvaluation) -> list[Ask]:
    """Return a sample of `asks`, in order: `target.limit` of them, or a few more to keep units whole.

    A unit is what shares an id (MME's two questions on an image) or what the benchmark says. Units are drawn
    in the order of their ids' SHA-256: every model is asked the same, and a larger sample contains a smaller
    one. The first questions would be of one type where a file is sorted (MME, POPE).
    """
    units: dict[str, list[int]] = defaultdict(list)
    for position, ask in enumerate(asks):
        units[str(target.benchmark.unit_of(ask.head["question_id"]))].append(position)
    chosen: list[int] = []
    for unit in sorted(units, key=lambda unit: hashlib.sha256(unit.encode()).digest()):
        if len(chosen) >= (target.limit or 0):
            break
        chosen += units[unit]
    return [asks[position] for position in sorted(chosen)]


def _read_all_asks(target: ModelEvaluation) -> list[Ask]:
    evaluation = target.evaluation
    images = target.root / evaluation.images
    if evaluation.questions == "mmbench":
        return read_mmbench_asks(target.question_file, rounds=False, suffix=evaluation.suffix)
    if evaluation.questions == "conversations":
        return read_conversation_asks(target.question_file, images, suffix=evaluation.suffix)
    return read_jsonl_asks(target.question_file, images)


def job_of(target: ModelEvaluation, settings: JobSettings) -> AnswerJob:
    """Return the job that answers this process's shard of an evaluation."""
    limit = settings.max_new_tokens or target.evaluation.max_new_tokens
    # Each process writes its shard's file; `llava eval` merges them in a step of its own.
    shard = replace(settings.shard, launched=False)
    return AnswerJob(
        model=settings.model,
        generation=replace(settings.generation, max_new_tokens=limit),
        conv_mode=settings.conv_mode,
        question_file=target.question_file,
        answers_file=target.answers / f"{shard.name}.jsonl",
        shard=shard,
        batch_size=settings.batch_size,
        exact=settings.exact,
        backend=None if settings.vllm is None else VLLM,
    )
