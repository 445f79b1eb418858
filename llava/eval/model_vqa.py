"""COMMAND: answer a jsonl of questions about images at length (up to 1,024 tokens).

python -m llava.eval.model_vqa --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --question-file questions.jsonl --image-folder images \
        --answers-file answers.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llava.benchmarks.base import read_jsonl_questions
from llava.command import run
from llava.infer.jobs.flags import (
    add_model_flags,
    add_run_flags,
    add_sampling_flags,
    answering_run,
    generation,
)
from llava.infer.jobs.run import Ask, Run, answer, asks_about_images


def read_jsonl_job(
    argv: Sequence[str] | None, description: str | None, *, max_new_tokens: int, limit_is_a_flag: bool = False
) -> tuple[Run, list[Ask]]:
    """The run that the flags describe, and its questions; `limit_is_a_flag` adds --max_new_tokens."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.jsonl", conv_mode="llava_v1")
    add_sampling_flags(parser)
    if limit_is_a_flag:
        parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)
    flags = parser.parse_args(argv)
    limit = flags.max_new_tokens if limit_is_a_flag else max_new_tokens
    asked = answering_run(flags, generation(flags, max_new_tokens=limit))
    questions = read_jsonl_questions(asked.question_file)
    folder = Path(flags.image_folder).expanduser()
    return asked, asks_about_images(questions, folder, source=asked.question_file)


def read_job(argv: Sequence[str] | None = None) -> tuple[Run, list[Ask]]:
    """The run and the questions that `argv` names (None: the command line)."""
    return read_jsonl_job(argv, __doc__, max_new_tokens=1024)


def main() -> None:
    answer(*read_job())


if __name__ == "__main__":
    run(main)
