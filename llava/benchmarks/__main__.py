"""The command `llava benchmarks`: prepare, score, submit and more, the same for every benchmark.

llava benchmarks score seed --root playground/data/eval/seed_bench \
        --answers answers/llava-v1.5-7b/merge.jsonl --save-path answers/llava-v1.5-7b
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from llava import benchmarks, command
from llava.benchmarks import paper
from llava.benchmarks.base import Benchmark, Task
from llava.benchmarks.evaluation import METRICS, score_file
from llava.errors import DataError
from llava.files import require_distinct
from llava.scoring.metrics import format_table, read_scores

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and run one sub-command."""
    args = _parser().parse_args()
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava benchmarks", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the benchmarks")
    listing.add_argument("--markdown", action="store_true", help="as the table of llava/benchmarks/README.md")
    listing.set_defaults(run=_list)
    prepare = _add(commands, "prepare", _prepare, "write the question file from the official download")
    prepare.add_argument("--output", type=Path, help="the question file, if not at its usual place")
    prepare.add_argument("--force", action="store_true", help="replace an existing question file")
    score = _add(commands, "score", _score, "score an answers file by the official rule")
    score.add_argument("--answers", type=Path, required=True, help="answers or submission file")
    score.add_argument("--save-path", type=Path, help="folder that gets metrics.json")
    score.add_argument("--truth", type=Path, help="the ground truth, if not at its usual place in ROOT")
    score.add_argument("--allow-missing", action="store_true", help="count missing answers as wrong")
    submit = _add(commands, "submit", _submit, "write the file for the benchmark's server or judge")
    submit.add_argument("--answers", type=Path, required=True)
    submit.add_argument("--output", type=Path, required=True)
    submit.add_argument("--allow-missing", action="store_true", help="leave out what has no answer")
    present = commands.add_parser("present", help="print which of the named benchmarks have their data")
    present.add_argument("benchmarks", nargs="+", metavar="NAME", help="or NAME=SPLIT for another split")
    present.add_argument("--eval-root", type=Path, required=True, help="holds the benchmarks' folders")
    present.add_argument("--need-all", action="store_true", help="fail if one lacks its data")
    present.set_defaults(run=_present)
    row = commands.add_parser("row", help="print the paper's row of one model, with the published ones")
    row.add_argument("metrics", nargs="*", type=Path, metavar="METRICS", help="its metrics.json files")
    row.add_argument("--name", required=True, help="the model's name")
    row.set_defaults(run=_row)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, run: object, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("benchmark", metavar="NAME", help="one that `list` shows")
    parser.add_argument("--root", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--split", help="which questions, if there are several files")
    parser.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> None:
    found = [benchmarks.get(name) for name in benchmarks.names()]
    if args.markdown:
        sys.stdout.write(markdown_table(found))
        return
    rows = [(b.name, ", ".join(b.splits), b.title) for b in found]
    sys.stdout.write(format_table(("name", "splits", "benchmark"), rows) + "\n")


def markdown_table(found: Sequence[Benchmark]) -> str:
    """Return the table of benchmarks in llava/benchmarks/README.md."""
    lines = [
        "| benchmark | name | files under `playground/data/eval` | from | result |",
        "|---|---|---|---|---|",
    ]
    for benchmark in found:
        names = ", ".join(f"`{name}`" for name in (benchmark.name, *benchmark.aliases))
        choices = [" or ".join(f"`{file}`" for file in choice) for choice in benchmark.needs]
        files = f"in `{benchmark.folder}/`: " + ", ".join(choices)
        lines.append(f"| {benchmark.title} | {names} | {files} | {benchmark.download} | {benchmark.result} |")
    return "".join(f"{line}\n" for line in lines)


def _present(args: argparse.Namespace) -> None:
    lacking = []
    for word in args.benchmarks:
        name, _, split = word.partition("=")
        try:
            benchmarks.evaluation_of(name, split or None, args.eval_root, "").check_data()
        except DataError as error:
            lacking.append(str(error))
        else:
            sys.stdout.write(f"{name}\n")
    if lacking and args.need_all:
        raise DataError("; ".join(lacking), code="missing-download")
    for line in lacking:
        logger.warning("left out: %s", line)


def _row(args: argparse.Namespace) -> None:
    sys.stdout.write(paper.table(args.name, [read_scores(path) for path in args.metrics]) + "\n")


def _prepare(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    usual = benchmark.question_path(args.root, args.split)
    path, split = args.output or usual, benchmark.pick_split(args.split)
    if args.output:
        require_distinct((args.output,), [file for file in benchmark.downloads(args.root) if file != usual])
    if path.is_file() and not args.force:
        count = len(benchmark.read_questions(args.root, split))
        sys.stdout.write(f"{path} exists: {benchmark.describe_count(count, split)} (--force replaces it)\n")
        return
    count = benchmark.prepare(args.root, path, split=split)
    sys.stdout.write(f"wrote {path}: {benchmark.describe_count(count, split)}\n")


def _score(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    outputs = (args.save_path / METRICS,) if args.save_path else ()
    require_distinct(outputs, (args.answers, args.truth))
    task = Task(args.root, benchmark.pick_split(args.split), (), args.allow_missing, args.truth)
    score_file(benchmark, task, args.answers, args.save_path)


def _submit(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    require_distinct((args.output,), (args.answers, *benchmark.downloads(args.root)))
    answers = benchmark.read_answers(args.answers)
    benchmark.write_submission(
        args.root, answers, args.output, split=args.split, allow_missing=args.allow_missing
    )
    sys.stdout.write(f"wrote {args.output}\n")


if __name__ == "__main__":
    command.run(main)
