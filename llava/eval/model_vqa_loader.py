"""Command: answer a jsonl of questions about images with short answers.

python -m llava.eval.model_vqa_loader --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --question-file questions.jsonl --image-folder images \
        --answers-file answers.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.command import run
from llava.eval.model_vqa import read_jsonl_job
from llava.infer.jobs.run import AnswerJob, Ask, answer


def read_loader_job(argv: Sequence[str] | None = None) -> tuple[AnswerJob, list[Ask]]:
    """Return the job and the questions that `argv` names (None: the command line)."""
    return read_jsonl_job(argv, __doc__, max_new_tokens=128, limit_is_a_flag=True)


def main() -> None:
    answer(*read_loader_job())


if __name__ == "__main__":
    run(main)
