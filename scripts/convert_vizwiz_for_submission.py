"""Turn LLaVA's VizWiz answers into the upload for EvalAI."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.benchmarks.answers import read_answers
from llava.benchmarks.base import read_jsonl_questions
from llava.benchmarks.tasks.vizwiz import write_vizwiz_upload
from llava.command import run
from llava.files import require_distinct


def main() -> None:
    """Read questions and answers, write the upload, say how many there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="llava_test.jsonl")
    parser.add_argument("--result-file", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--result-upload-file", type=Path, required=True)
    args = parser.parse_args()
    require_distinct((args.result_upload_file,), (args.annotation_file, args.result_file))
    questions = read_jsonl_questions(args.annotation_file, ("question_id", "image"))
    answers = read_answers(args.result_file)
    write_vizwiz_upload(questions, answers, args.result_upload_file)
    print(f"total results: {len(answers)}, total split: {len(questions)}, error_line: 0")


if __name__ == "__main__":
    run(main)
