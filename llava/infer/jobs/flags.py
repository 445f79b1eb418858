"""The flags that the answering commands share. Needs no torch.

Names and defaults are the original's, except that --model-path is required: facebook/opt-350m was a leftover.
Source: LLaVA v1.2.2 llava/eval/model_vqa*.py, run_llava.py and llava/serve/cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from llava.errors import SettingsError
from llava.files import require_distinct
from llava.infer.engine.requests import Device, DType, Generation, ModelChoice
from llava.infer.jobs.names import get_model_name_from_path
from llava.infer.jobs.run import AnswerJob
from llava.infer.jobs.shards import choose_shard


def parse_or_complete(parser: argparse.ArgumentParser, given: object) -> argparse.Namespace:
    """Return the flags of a command.

    Args:
        parser: The command's.
        given: A list of flags; None for the command line; or an object with flags as attributes, from a
            program that calls a command as a function (the original's `eval_model(args)`). One that it lacks
            has the flag's default.

    Raises:
        SettingsError: Such an object lacks a flag that has no default.
    """
    if given is None or isinstance(given, Sequence):
        return parser.parse_args(given)
    flags = argparse.Namespace()
    for action in parser._actions:
        if action.dest == "help":
            continue
        if action.required and not hasattr(given, action.dest):
            raise SettingsError(f"args has no {action.dest}", code="missing-flag")
        setattr(flags, action.dest, getattr(given, action.dest, action.default))
    return flags


def add_model_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the flags for the model, its device and its precision; for `several`, --model-path is a list."""
    text = "folder or hub id of the model, adapter or projector"
    parser.add_argument(
        "--model-path",
        required=True,
        action="append" if several else "store",
        help=f"{text}; give it again for a second one beside it" if several else text,
    )
    parser.add_argument("--model-base", help="the model that an adapter or projector belongs to")
    parser.add_argument(
        "--device", choices=get_args(Device), default="auto", help="auto: cuda if there, else cpu"
    )
    parser.add_argument(
        "--dtype", choices=get_args(DType), default="auto", help="auto: float16 on a GPU, float32 on a CPU"
    )
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")


def add_sampling_flags(parser: argparse.ArgumentParser, *, beams: bool = True) -> None:
    """Add the flags for generation; temperature 0 is greedy."""
    parser.add_argument("--temperature", type=float, default=0.2, help="0: greedy")
    if beams:
        parser.add_argument("--top_p", type=float)
        parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="for sampling, with temperature above 0")


def add_run_flags(parser: argparse.ArgumentParser, *, question_file: str, conv_mode: str) -> None:
    """Add the flags for questions, answers, shards and batches."""
    parser.add_argument("--image-folder", default="")
    parser.add_argument("--question-file", default=question_file)
    parser.add_argument("--answers-file", default="answer.jsonl")
    parser.add_argument("--conv-mode", default=conv_mode, help="the conversation template")
    parser.add_argument("--num-chunks", type=int, help="number of shards (default: of torchrun or srun)")
    parser.add_argument("--chunk-idx", type=int, help="which shard to answer, from 0")
    add_batch_flags(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="discard earlier answers of this answers file"
    )


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for batches."""
    parser.add_argument(
        "--batch-size", type=int, help="most prompts in a batch (default: as many as fit in memory)"
    )
    parser.add_argument(
        "--exact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask again on its own where a batch could have changed the answer",
    )


def model_choice(flags: argparse.Namespace) -> ModelChoice:
    """Return the model that `flags` name."""
    if flags.load_8bit and flags.load_4bit:
        raise SettingsError(
            "--load-8bit and --load-4bit exclude each other; give one", code="conflicting-flags"
        )
    path = str(Path(flags.model_path).expanduser()) if flags.model_path.startswith("~") else flags.model_path
    return ModelChoice(
        path=path,
        base=flags.model_base or None,
        name=get_model_name_from_path(path),
        device=flags.device,
        dtype=flags.dtype,
        load_8bit=flags.load_8bit,
        load_4bit=flags.load_4bit,
    )


def generation_settings(flags: argparse.Namespace, *, max_new_tokens: int, beams: bool = True) -> Generation:
    """Return how `flags` say answers are generated.

    Raises:
        SettingsError: A value is out of its range.
    """
    top_p, num_beams = (flags.top_p, flags.num_beams) if beams else (None, 1)
    for name, value, is_valid in (
        ("--temperature", flags.temperature, flags.temperature >= 0),
        ("--top_p", top_p, top_p is None or 0 < top_p <= 1),
        ("--num_beams", num_beams, num_beams >= 1),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
    ):
        if not is_valid:
            raise SettingsError(f"{name} {value} is out of range", code="out-of-range")
    return Generation(flags.temperature, top_p, num_beams, max_new_tokens, seed=flags.seed)


def answer_job(flags: argparse.Namespace, generation: Generation) -> AnswerJob:
    """Return the job that `flags` describe."""
    if flags.batch_size is not None and flags.batch_size < 1:
        raise SettingsError(f"--batch-size {flags.batch_size}: want at least 1", code="out-of-range")
    questions, answers = Path(flags.question_file).expanduser(), Path(flags.answers_file).expanduser()
    require_distinct((answers,), (questions,))
    return AnswerJob(
        model=model_choice(flags),
        generation=generation,
        conv_mode=flags.conv_mode,
        question_file=questions,
        answers_file=answers,
        shard=choose_shard(flags.num_chunks, flags.chunk_idx),
        batch_size=flags.batch_size,
        exact=flags.exact,
        overwrite=flags.overwrite,
    )
