"""Command: answer a jsonl of questions about images with long answers (up to 1,024 tokens).

python -m llava.eval.model_vqa --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --question-file questions.jsonl --image-folder images \
        --answers-file answers.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.benchmarks.base import read_jsonl_questions
from llava.command import run
from llava.compat.questions import get_chunk as get_chunk
from llava.compat.questions import split_list as split_list
from llava.infer.jobs.flags import (
    add_model_flags,
    add_run_flags,
    add_sampling_flags,
    answer_job,
    generation_settings,
    parse_or_complete,
)
from llava.infer.jobs.run import AnswerJob, Ask, answer, asks_about_images


def read_jsonl_job(
    given: object, description: str | None, *, max_new_tokens: int, limit_is_a_flag: bool = False
) -> tuple[AnswerJob, list[Ask]]:
    """Return the job that the flags describe and its questions; `limit_is_a_flag` adds --max_new_tokens."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.jsonl", conv_mode="llava_v1")
    add_sampling_flags(parser)
    if limit_is_a_flag:
        parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)
    flags = parse_or_complete(parser, given)
    limit = flags.max_new_tokens if limit_is_a_flag else max_new_tokens
    job = answer_job(flags, generation_settings(flags, max_new_tokens=limit))
    return job, read_jsonl_asks(job.question_file, Path(flags.image_folder).expanduser())


def read_jsonl_asks(question_file: Path, image_folder: Path) -> list[Ask]:
    """Return what to ask for LLaVA's jsonl of questions about images."""
    questions = read_jsonl_questions(question_file)
    return asks_about_images(questions, image_folder, source=question_file)


def read_vqa_job(given: object = None) -> tuple[AnswerJob, list[Ask]]:
    """Return the job and the questions that flags name; see `parse_or_complete` for `given`."""
    return read_jsonl_job(given, __doc__, max_new_tokens=1024)


def eval_model(args: object = None) -> None:
    """Answer the questions that `args` names, by default the command line."""
    answer(*read_vqa_job(args))


def main() -> None:
    eval_model()


if __name__ == "__main__":
    run(main)
