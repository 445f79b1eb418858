"""Score ScienceQA answers as the original's tool does: its flags, its two files, its one line on stdout.

Without an answer a problem counts as FAILED, as in the original, and a warning says how many. For intervals
and the official breakdown use `python -m llava.benchmarks score scienceqa`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from llava.benchmarks.aggregate import degenerate_texts
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.tasks import scienceqa
from llava.command import run
from llava.compat.questions import convert_caps as convert_caps
from llava.compat.questions import get_pred_idx as get_pred_idx
from llava.errors import DataError
from llava.files import require_distinct
from llava.schema import Question

logger = logging.getLogger(__name__)


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
    inputs = (args.result_file, args.base_dir / "problems.json", splits)
    require_distinct((args.output_file, args.output_result), inputs)
    problems = scienceqa.read_official_problems(args.base_dir / "problems.json", splits, args.split)
    if not problems:
        raise DataError(f"{splits}: the split {args.split} is empty", code="empty-split")
    questions = [Question(problem.id, "") for problem in problems]
    answers = read_answers(args.result_file)
    matched = match(questions, answers, allow_missing=True, name="scienceqa")
    for text in degenerate_texts([answer.text for answer in answers]):
        logger.warning(text)
    if matched.missing:
        logger.warning("%d of %d problems have no answer and count as FAILED", matched.missing, len(problems))
    given = {p.id: answer for p, answer in zip(problems, matched.answers, strict=True) if answer}
    analysis = scienceqa.build_analysis(problems, given, args.options)
    result = scienceqa.build_result_file(problems, given, args.options)
    scienceqa.write_json_as_original(args.output_file, analysis)
    scienceqa.write_json_as_original(args.output_result, result)
    rows = [(row, name == "correct") for name, group in analysis.items() for row in group]
    with_image = [ok for row, ok in rows if row["is_multimodal"]]
    image_share = f"{sum(with_image) / len(with_image) * 100:.2f}%" if with_image else "n/a"
    sys.stdout.write(
        f"Total: {len(rows)}, Correct: {result['correct']}, Accuracy: {result['acc']:.2f}%, "
        f"IMG-Accuracy: {image_share}\n"
    )


if __name__ == "__main__":
    run(main)
