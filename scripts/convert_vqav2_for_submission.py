"""Turn LLaVA's VQAv2 answers into the upload for EvalAI, which must cover all of test2015.

Questions outside the split that was asked get "". Where the split's own question file is there, every one
of its questions must be answered (or --allow-missing given); the original left holes without a word.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import read_jsonl_questions
from llava.benchmarks.evaluation import require_model_name
from llava.benchmarks.tasks.vqav2 import UPLOADED, write_vqav2_upload
from llava.command import run

logger = logging.getLogger("llava.convert_vqav2")


def main() -> None:
    """Read DIR/answers/SPLIT/CKPT/merge.jsonl, write DIR/answers_upload/SPLIT/CKPT.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("./playground/data/eval/vqav2"))
    parser.add_argument("--ckpt", required=True, help="the model's name under answers/SPLIT")
    parser.add_argument("--split", required=True, help="e.g. llava_vqav2_mscoco_test-dev2015")
    parser.add_argument("--allow-missing", action="store_true", help="leave holes where answers are missing")
    args = parser.parse_args()
    require_model_name(args.ckpt)
    require_model_name(args.split)
    answers = read_answers(args.dir / "answers" / args.split / args.ckpt / "merge.jsonl")
    questions = read_jsonl_questions(args.dir / UPLOADED, ["question_id"])
    asked = args.dir / f"{args.split}.jsonl"
    if asked.is_file():
        split_questions = read_jsonl_questions(asked, ["question_id"])
        match(split_questions, answers, allow_missing=args.allow_missing, name=args.split)
    upload = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
    matched = write_vqav2_upload(questions, answers, upload)
    print(f"total results: {len(answers)}, total split: {len(questions)}, error_line: 0")
    if matched.missing:
        logger.warning('%d questions of %s have no answer and get ""', matched.missing, UPLOADED)


if __name__ == "__main__":
    run(main)
