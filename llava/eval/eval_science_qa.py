"""Score ScienceQA answers as the original's tool does; its flags, its two files, its one line on stdout.

Without an answer a problem counts as FAILED, as in the original, and a warning says how many. For intervals
and the official breakdown use `python -m llava.benchmarks score scienceqa`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.benchmarks import letter_rules
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.tasks import scienceqa
from llava.benchmarks.tasks.scienceqa import ScienceProblem
from llava.command import run
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.files import atomic_write
from llava.schema import Answer, Question

logger = logging.getLogger(__name__)
NO_ANSWER = Answer("", "Unknown", "FAILED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--base-dir", type=Path, required=True, help="holds problems.json and pid_splits.json"
    )
    parser.add_argument("--result-file", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--output-file", type=Path, required=True, help="right and wrong answers (JSON)")
    parser.add_argument("--output-result", type=Path, required=True, help="accuracy and choices (JSON)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", default=scienceqa.LETTERS, help="the letters, in order")
    args = parser.parse_args()
    splits = args.base_dir / "pid_splits.json"
    problems = scienceqa.official_problems(args.base_dir / "problems.json", splits, args.split)
    if not problems:
        raise DataError(f"{splits}: the split {args.split} is empty")
    questions = [Question(problem.id, "") for problem in problems]
    answers = read_answers(args.result_file)
    matched = match(questions, answers, allow_missing=True, name="scienceqa")
    if matched.missing:
        logger.warning("%d of %d problems have no answer and count as FAILED", matched.missing, len(problems))
    given = {p.id: answer for p, answer in zip(problems, matched.answers, strict=True) if answer}
    analysis = [_analysis(problem, given, args.options) for problem in problems]
    result = scienceqa.results(problems, given, args.options)
    right = [problem.answer == result["results"][problem.id] for problem in problems]
    rows = list(zip(analysis, right, strict=True))
    _write(
        args.output_file,
        {"correct": [row for row, ok in rows if ok], "incorrect": [row for row, ok in rows if not ok]},
    )
    _write(args.output_result, result)
    with_image = [ok for row, ok in rows if row["is_multimodal"]]
    image_share = f"{sum(with_image) / len(with_image) * 100:.2f}%" if with_image else "n/a"
    sys.stdout.write(
        f"Total: {len(rows)}, Correct: {result['correct']}, Accuracy: {result['acc']:.2f}%, "
        f"IMG-Accuracy: {image_share}\n"
    )


def _analysis(problem: ScienceProblem, given: Mapping[str, Answer], letters: str) -> dict[str, Any]:
    answer = given.get(problem.id, NO_ANSWER)
    return {
        "question_id": problem.id,
        "parsed_ans": letter_rules.scienceqa(answer.text, letters) or "FAILED",
        "ground_truth": letters[problem.answer],
        "question": answer.prompt,
        "pred": answer.text,
        "is_multimodal": DEFAULT_IMAGE_TOKEN in answer.prompt,
    }


def _write(path: Path, value: object) -> None:
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2)


if __name__ == "__main__":
    run(main)
