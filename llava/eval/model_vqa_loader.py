"""Command: answer a jsonl of questions about images with short answers.

python -m llava.eval.model_vqa_loader --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --question-file questions.jsonl --image-folder images \
        --answers-file answers.jsonl
"""

from __future__ import annotations

from llava.command import run
from llava.compat.loader import CustomDataset as CustomDataset
from llava.compat.loader import collate_fn as collate_fn
from llava.compat.loader import create_data_loader as create_data_loader
from llava.compat.questions import get_chunk as get_chunk
from llava.compat.questions import split_list as split_list
from llava.eval.model_vqa import read_jsonl_job
from llava.infer.jobs.run import AnswerJob, Ask, answer


def read_loader_job(given: object = None) -> tuple[AnswerJob, list[Ask]]:
    """Return the job and the questions that flags name; see `parse_or_complete` for `given`."""
    return read_jsonl_job(given, __doc__, max_new_tokens=128, limit_is_a_flag=True)


def eval_model(args: object = None) -> None:
    """Answer the questions that `args` names, by default the command line."""
    answer(*read_loader_job(args))


def main() -> None:
    eval_model()


if __name__ == "__main__":
    run(main)
