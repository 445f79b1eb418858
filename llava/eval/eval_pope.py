"""Score POPE answers as the original's tool does: its flags, its lines on stdout.

The lists come in the order of the question file; one without labels is left out, and stderr says so. A
question without answer is an error (the original compared position by position and cut what did not fit)
unless --allow-missing counts it as wrong. For intervals use `python -m llava.benchmarks score pope`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from llava.benchmarks.aggregate import degenerate_texts
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import read_jsonl_questions
from llava.benchmarks.tasks import pope
from llava.command import run
from llava.errors import DataError
from llava.files import read_jsonl
from llava.schema import JsonObject

RULE = "=" * 36
logger = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotation-dir", type=Path, required=True, help="holds coco_pope_*.json")
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--allow-missing", action="store_true", help="count missing answers as wrong")
    args = parser.parse_args()
    questions = read_jsonl_questions(args.question_file, ("question_id", "category"))
    truths = pope.find_labels(questions, pope.read_labels(args.annotation_dir))
    known, answers, notes = pope.keep_labelled(questions, truths, read_answers(args.result_file))
    if not known:
        raise DataError(
            f"{args.annotation_dir}: no list here is of a category of {args.question_file}",
            code="no-labels",
        )
    for note in (*notes, *degenerate_texts([answer.text for answer in answers])):
        logger.warning(note)
    asked = [question for question, _ in known]
    matched = match(asked, answers, allow_missing=args.allow_missing, name="pope")
    for category in dict.fromkeys(question.category for question in asked):
        pairs = [
            (label, pope.parse_pope_answer(answer.text) if answer else pope.WRONG[label])
            for (question, label), answer in zip(known, matched.answers, strict=True)
            if question.category == category
        ]
        sys.stdout.write(f"Category: {category}, # samples: {len(pairs)}\n")
        _show(pairs)
        sys.stdout.write(f"{RULE}\n")


# Compatibility: called by programs that import the original's.
def eval_pope(answers: list[JsonObject], label_file: str) -> None:
    """Print the counts and scores of answers to the list in `label_file`, position by position.

    Args:
        answers: Rows of an answers file, in the order of `label_file`; each `text` becomes yes or no.
        label_file: JSON lines with a `label` each. What one of the two has more than the other is left out.
    """
    for answer in answers:
        answer["text"] = pope.parse_pope_answer(answer["text"])
    labels = ("no" if row["label"] == "no" else "yes" for _, row in read_jsonl(Path(label_file)))
    _show(list(zip(labels, (answer["text"] for answer in answers), strict=False)))


def _show(pairs: list[tuple[str, str]]) -> None:
    c = pope.count_confusion(pairs)
    numbers = (c.f1, c.accuracy, c.precision, c.recall, c.yes_ratio)
    lines = (
        "TP\tFP\tTN\tFN\t",
        f"{c.tp}\t{c.fp}\t{c.tn}\t{c.fn}",
        f"Accuracy: {c.accuracy}",
        f"Precision: {c.precision}",
        f"Recall: {c.recall}",
        f"F1 score: {c.f1}",
        f"Yes ratio: {c.yes_ratio}",
        ", ".join(f"{number:.3f}" for number in numbers),
    )
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    run(main)
