"""Score TextVQA answers as the original's tool does: its flags, its lines on stdout.

With --result-dir every jsonl file in that folder is scored. Answers to questions outside the annotations
are an error. For intervals use `python -m llava.benchmarks score textvqa`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from llava.benchmarks.aggregate import degenerate_texts
from llava.benchmarks.answers import read_answers
from llava.benchmarks.tasks import textvqa
from llava.benchmarks.vqa_answers import normalised_accuracy
from llava.command import run
from llava.compat.questions import prompt_processor as prompt_processor
from llava.errors import AnswersError, SettingsError

logger = logging.getLogger(__name__)


def main() -> None:
    """Print the accuracy of --result-file, and of each .jsonl file in --result-dir."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotation-file", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", type=Path, help="answers, one JSON object a line")
    parser.add_argument("--result-dir", type=Path, help="a folder of such files")
    args = parser.parse_args()
    if args.result_file is None and args.result_dir is None:
        raise SettingsError("nothing to score: give --result-file or --result-dir", code="missing-flag")
    if args.result_file:
        eval_single(args.annotation_file, args.result_file)
    for file in sorted(args.result_dir.iterdir()) if args.result_dir else []:
        if file.suffix == ".jsonl":
            eval_single(args.annotation_file, file)
        else:
            sys.stdout.write(f"Skipping {file.name}\n")


def eval_single(annotation_file: str | Path, result_file: str | Path) -> None:
    """Print the accuracy of a file of answers.

    Raises:
        AnswersError: The file has no answers, or one that belongs to no question of the annotations.
    """
    file = Path(result_file)
    truth = textvqa.read_annotations(Path(annotation_file))
    matched = textvqa.match_annotations(truth, read_answers(file), allow_missing=True)
    points = [
        normalised_accuracy(answer.text, row["answers"])
        for row, answer in zip(truth, matched.answers, strict=True)
        if answer
    ]
    if not points:
        raise AnswersError(f"{file}: there are no answers in this file", code="no-answers")
    for text in degenerate_texts([answer.text for answer in matched.answers if answer]):
        logger.warning("%s: %s", file, text)
    accuracy = 100.0 * sum(points) / len(points)
    sys.stdout.write(f"{file.stem}\nSamples: {len(points)}\nAccuracy: {accuracy:.2f}%\n\n")


if __name__ == "__main__":
    run(main)
