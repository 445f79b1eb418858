"""Write ScienceQA as LLaVA conversations or as instruction lines, in the original's prompt formats.

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir DIR --split test --prompt-format CQM-A
python scripts/convert_sqa_to_llava.py convert_to_jsonl --base-dir DIR --split train
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.benchmarks.scienceqa_formats import write_conversations, write_instructions
from llava.command import run


def main() -> None:
    """Run the task named first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, usual in (("convert_to_llava", "QCM-LEA"), ("convert_to_jsonl", "QCM-LEPA")):
        task = tasks.add_parser(name)
        task.add_argument("--base-dir", "--base_dir", type=Path, required=True, help="holds problems.json")
        task.add_argument("--split", required=True, help="a list of pid_splits.json")
        task.add_argument("--prompt-format", "--prompt_format", default=usual, help=f"default {usual}")
    args = parser.parse_args()
    if args.task == "convert_to_llava":
        count = write_conversations(args.base_dir, args.split, args.prompt_format)
        print(f"Number of samples: {count}")
    else:
        write_instructions(args.base_dir, args.split, args.prompt_format)


if __name__ == "__main__":
    run(main)
