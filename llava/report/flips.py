"""List the questions that one run got right and the other wrong, with their images.

    llava report compare A B [--output compare.html|compare.md]

The page is that of `llava report badcases` with the changed questions only. On stdout stands how many were
lost and won by type.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from llava.errors import SettingsError
from llava.files import atomic_write
from llava.report.badcases import Case, add_picture_flags, build_page, pick_thumbnails, read_cases
from llava.schema import Verdict
from llava.scoring.markup import escape_markdown, printable
from llava.scoring.metrics import format_table

PAGE, LIST = ".html", ".md"
LOST, WON = "right -> wrong", "wrong -> right"


def changes_table(cases: Sequence[Case]) -> str:
    """Return how many questions of each type were lost and won, for a terminal."""
    changes: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        changes[f"{case.benchmark}: {case.verdicts[0].type}"].append(case.change)
    rows = []
    for name, found in [*changes.items(), ("all", [case.change for case in cases])]:
        lost, won = found.count(LOST), found.count(WON)
        rows.append((printable(name), f"{len(found):,}", f"{lost:,}", f"{won:,}", f"{won - lost:+,}"))
    return format_table(("type", "questions", LOST, WON, "net"), rows)


def list_flips(names: Sequence[str], flips: Sequence[Case]) -> str:
    """Return the changed questions as Markdown."""
    lines = [f"# Flipped questions: {' and '.join(map(escape_markdown, names))}"]
    for case in flips:
        first = case.verdicts[0]
        where = escape_markdown(f"{case.benchmark}, {first.type}, question {first.question_id}")
        lines.append(f"\n## {case.change}: {where}\n")
        if first.image:
            lines.append(f"- image: {escape_markdown(first.image)}")
        lines.append(f"- question: {escape_markdown(first.question)}")
        lines.append(f"- right answer: {escape_markdown(first.truth)}")
        answers = zip(names, case.verdicts, strict=True)
        lines += [f"- {escape_markdown(name)}: {_show_answer(verdict)}" for name, verdict in answers]
    return "\n".join(lines) + "\n"


def _show_answer(verdict: Verdict) -> str:
    text = "(no answer)" if verdict.answer is None else escape_markdown(verdict.answer) or "(empty)"
    return f"{text} ({verdict.score:.2f} points)" if 0 < verdict.score < 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava report compare", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="metrics.json or a folder")
    parser.add_argument(
        "--output", type=Path, default=Path("compare.html"), help="a page, or a list that ends in .md"
    )
    add_picture_flags(parser)
    args = parser.parse_args()
    if args.output.suffix not in (PAGE, LIST):
        raise SettingsError(
            f"--output {args.output} ends in {args.output.suffix!r}; wanted {PAGE} or {LIST}",
            code="unknown-format",
        )
    names, cases = read_cases(args)
    flips = [case for case in cases if case.is_flip]
    if args.output.suffix == LIST:
        text = list_flips(names, flips)
    else:
        text = build_page(names, flips, pick_thumbnails(args, flips), "Flipped questions")
    with atomic_write(args.output) as stream:
        stream.write(text)
    sys.stdout.write(f"{changes_table(cases)}\n{args.output}: {len(flips):,} flipped questions\n")
