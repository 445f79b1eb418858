"""The command `python -m llava.benchmarks`: prepare, score, submit and more, the same for every one.

python -m llava.benchmarks score seed --root playground/data/eval/seed_bench \
        --answers answers/llava-v1.5-7b/merge.jsonl --save-path answers/llava-v1.5-7b
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from llava import benchmarks, command
from llava.benchmarks import paper
from llava.benchmarks.base import Benchmark
from llava.errors import DataError
from llava.schema import Scores
from llava.scoring.metrics import (
    DETAILS,
    format_interval,
    format_table,
    format_value,
    read_scores,
    write_scores,
)

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and run one sub-command."""
    args = _parser().parse_args()
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llava.benchmarks", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="name the benchmarks").set_defaults(run=_list)
    prepare = _add(commands, "prepare", _prepare, "write the question file from the official download")
    prepare.add_argument("--output", type=Path, help="another place for the question file")
    prepare.add_argument("--force", action="store_true", help="write it even where there is one")
    score = _add(commands, "score", _score, "judge an answers file by the official rule")
    score.add_argument("--answers", type=Path, required=True, help="answers or submission file")
    score.add_argument("--save-path", type=Path, help="folder that gets metrics.json")
    score.add_argument("--truth", type=Path, help="ground truth, where it is not at its usual place in ROOT")
    score.add_argument("--allow-missing", action="store_true", help="count missing answers as wrong")
    submit = _add(commands, "submit", _submit, "write the file for the benchmark's server or judge")
    submit.add_argument("--answers", type=Path, required=True)
    submit.add_argument("--output", type=Path, required=True)
    submit.add_argument("--allow-missing", action="store_true", help="leave out what has no answer")
    present = commands.add_parser("present", help="print those of the named benchmarks whose data is there")
    told = "NAME=FILE asks for another split's, by its question file's name without suffix"
    present.add_argument("benchmarks", nargs="+", metavar="NAME", help=told)
    present.add_argument("--eval-root", type=Path, required=True, help="holds the benchmarks' folders")
    present.add_argument("--need-all", action="store_true", help="fail where one's data is not there")
    present.set_defaults(run=_present)
    row = commands.add_parser("row", help="the paper's row of one model, beside the published ones")
    row.add_argument("metrics", nargs="*", type=Path, metavar="METRICS", help="its metrics.json files")
    row.add_argument("--name", required=True, help="what the model is called")
    row.set_defaults(run=_row)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, run: object, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("benchmark", metavar="NAME", help="`python -m llava.benchmarks list` names them")
    parser.add_argument("--root", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--split", help="which questions, where there are several files")
    parser.set_defaults(run=run)
    return parser


def _list(_: argparse.Namespace) -> None:
    rows = [(b.name, ", ".join(b.splits), b.title) for b in map(benchmarks.get, benchmarks.names())]
    sys.stdout.write(format_table(("name", "splits", "benchmark"), rows) + "\n")


def _present(args: argparse.Namespace) -> None:
    lacking = []
    for word in args.benchmarks:
        name, _, question_file = word.partition("=")
        benchmark = benchmarks.get(name)
        root = args.eval_root / benchmark.folder
        if missing := benchmark.missing(root, question_file or None):
            lacking.append(f"{name}: {root} lacks {', '.join(missing)}; get it from {benchmark.download}")
        else:
            sys.stdout.write(f"{name}\n")
    if lacking and args.need_all:
        raise DataError("; ".join(lacking))
    for line in lacking:
        logger.warning("left out: %s", line)


def _row(args: argparse.Namespace) -> None:
    sys.stdout.write(paper.table(args.name, [read_scores(path) for path in args.metrics]) + "\n")


def _prepare(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    path = args.output or benchmark.question_path(args.root, args.split)
    if path.is_file() and not args.force:
        questions = benchmark.read_questions(args.root, args.split)
        sys.stdout.write(f"{path} is there: {len(questions)} questions (--force writes it anew)\n")
        return
    count = benchmark.prepare(args.root, path, split=args.split)
    sys.stdout.write(f"wrote {path}: {count} questions\n")


def _score(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    answers = benchmark.read_answers(args.answers)
    scores = benchmark.score(
        args.root, answers, split=args.split, truth=args.truth, allow_missing=args.allow_missing
    )
    sys.stdout.write(score_table(scores) + "\n")
    if args.save_path:
        write_scores(args.save_path, scores)
    if scores.get(scores.headline).value is None:
        _leave_submission(benchmark, args)


def _leave_submission(benchmark: Benchmark, args: argparse.Namespace) -> None:
    if args.save_path is None:
        logger.warning(
            "%s has no local score; `submit` writes the file for its server or judge", benchmark.name
        )
        return
    path = args.save_path / f"submission{benchmark.submission_suffix}"
    answers = benchmark.read_answers(args.answers)
    benchmark.write_submission(
        args.root, answers, path, split=args.split, truth=args.truth, allow_missing=args.allow_missing
    )
    sys.stdout.write(f"{benchmark.name} has no local score; wrote {path} for its server or judge\n")


def _submit(args: argparse.Namespace) -> None:
    benchmark = benchmarks.get(args.benchmark)
    answers = benchmark.read_answers(args.answers)
    benchmark.write_submission(
        args.root, answers, args.output, split=args.split, allow_missing=args.allow_missing
    )
    sys.stdout.write(f"wrote {args.output}\n")


def score_table(scores: Scores) -> str:
    """The scores as lines for a terminal: group and name, n, value, 95 % interval, note; then the counts."""
    rows = [
        (
            s.name if s.group in {"total", "type"} else f"{s.group}: {s.name}",
            str(s.n),
            format_value(s.value),
            format_interval(s.low, s.high),
            s.note,
        )
        for s in scores.scores
        if s.group not in DETAILS
    ]
    told = ", ".join(f"{name} {count}" for name, count in scores.counts.items())
    table = format_table((scores.benchmark, "n", "score", "95 % interval", ""), rows)
    return "\n".join([table, told, *scores.notes])


if __name__ == "__main__":
    command.run(main)
