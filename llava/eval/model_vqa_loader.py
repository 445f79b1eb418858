"""COMMAND: answer a jsonl of questions about images with short answers.

    python -m llava.eval.model_vqa_loader --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --question-file questions.jsonl --image-folder images \
        --answers-file answers.jsonl
"""

from __future__ import annotations

from llava.command import run
from llava.eval.model_vqa import answer_jsonl


def main() -> None:
    answer_jsonl(__doc__, max_new_tokens=128, limit_is_a_flag=True)


if __name__ == "__main__":
    run(main)
