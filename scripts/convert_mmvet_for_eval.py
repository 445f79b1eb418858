"""Turn LLaVA's MM-Vet answers into the file that MM-Vet's GPT-4 judge reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.benchmarks.answers import read_answers
from llava.benchmarks.tasks.mmvet import write_results
from llava.command import run
from llava.files import require_distinct


def main() -> None:
    """Read --src (jsonl), write --dst (JSON)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--dst", type=Path, required=True, help='{"v1_<id>": text} for the judge')
    args = parser.parse_args()
    require_distinct((args.dst,), (args.src,))
    write_results(read_answers(args.src), args.dst)


if __name__ == "__main__":
    run(main)
