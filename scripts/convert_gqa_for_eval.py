"""Turn LLaVA's GQA answers into the predictions file of GQA's evaluator."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.benchmarks.answers import read_answers
from llava.benchmarks.tasks.gqa import write_predictions
from llava.command import run
from llava.files import require_distinct


def main() -> None:
    """Read --src (jsonl), write --dst (JSON)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--dst", type=Path, required=True, help="predictions for GQA's eval.py")
    args = parser.parse_args()
    require_distinct((args.dst,), (args.src,))
    write_predictions(read_answers(args.src), args.dst)


if __name__ == "__main__":
    run(main)
