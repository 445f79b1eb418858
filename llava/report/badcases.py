"""Browse the bad cases of one or two scored runs in a single HTML page.

    llava report badcases RUN [RUN] [--output badcases.html]

A run is a metrics.json or a folder with some. Of two runs, the page tells which questions became right and
which became wrong. The page needs no server and loads nothing: text, pictures and script are in the file.
What a model wrote is data there and is never read as HTML.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.benchmarks.base import EVAL_ROOT
from llava.errors import DataError, SettingsError
from llava.files import atomic_write, require_distinct
from llava.report.comparison import read_runs
from llava.report.names import shortest_names
from llava.report.page_files import fill_page
from llava.report.pairing import ComparedRun, align
from llava.report.thumbnails import ImageFinder, ImageKey, make_thumbnails
from llava.schema import JsonObject, Verdict

logger = logging.getLogger(__name__)

MOST_THUMBNAILS = 5_000
PIXELS = 160


@dataclass(frozen=True, slots=True)
class Case:
    """One question with the verdict of each run on it."""

    benchmark: str
    verdicts: tuple[Verdict, ...]
    image: ImageKey

    @property
    def change(self) -> str:
        """What became of the question: "right" or "wrong" for each run, in order."""
        return " -> ".join("wrong" if verdict.is_bad else "right" for verdict in self.verdicts)

    @property
    def is_flip(self) -> bool:
        """Whether one run got the question right and another one wrong."""
        return len({verdict.is_bad for verdict in self.verdicts}) > 1

    @property
    def interest(self) -> int:
        """The place among the cases whose pictures the page holds: flips, other bad cases, the rest."""
        return 0 if self.is_flip else 1 if self.verdicts[0].is_bad else 2

    def row(self, thumbnail: int) -> JsonObject:
        """Return what the page shows of the question; `thumbnail` is -1 where it has none."""
        first = self.verdicts[0]
        return {
            "benchmark": self.benchmark,
            "id": str(first.question_id),
            "type": first.type,
            "question": first.question,
            "truth": first.truth,
            "image": first.image or "",
            "thumbnail": thumbnail,
            "change": self.change,
            "answers": [
                {"text": each.answer, "score": each.score, "status": each.status} for each in self.verdicts
            ],
        }


def read_side(path: Path) -> dict[str, ComparedRun]:
    """Return the scores of one run by benchmark.

    Args:
        path: A metrics.json, or a folder with one for every benchmark.

    Raises:
        DataError: A file is damaged, a benchmark is there twice, or no answer to it is judged.
    """
    found: dict[str, ComparedRun] = {}
    for run in read_runs([path]):
        name = run.scores.benchmark
        if name in found:
            raise DataError(
                f"{path}: {found[name].path} and {run.path} are both of {name}; name one of them",
                code="two-runs",
            )
        if all(verdict.status == "unjudged" for verdict in run.scores.verdicts):
            raise DataError(f"{run.path}: no answer in it is judged, so none is a bad case", code="unjudged")
        found[name] = run
    return found


def pair_cases(sides: Sequence[dict[str, ComparedRun]]) -> list[Case]:
    """Return the questions that all runs answered, paired by id.

    Raises:
        DataError: The runs have no benchmark in common, or other questions of one.
    """
    common = [name for name in sides[0] if all(name in side for side in sides)]
    if not common:
        found = "; ".join(f"the {place}. has {', '.join(side)}" for place, side in enumerate(sides, 1))
        raise DataError(f"the runs have no benchmark in common: {found}", code="no-common-benchmark")
    for side in sides:
        for name, run in side.items():
            if name not in common:
                logger.warning("%s: the other run has no scores of %s; left out", run.path, name)
    return [case for name in common for case in _pair([side[name] for side in sides])]


def _pair(runs: Sequence[ComparedRun]) -> Iterator[Case]:
    base = runs[0].scores
    scores = [align(runs[0], run) for run in runs]
    for verdicts in zip(*(each.verdicts for each in scores), strict=True):
        first = verdicts[0]
        image = (base.benchmark, base.split, first.image or str(first.question_id))
        yield Case(base.benchmark, verdicts, image)


def build_page(
    names: Sequence[str], cases: Sequence[Case], thumbnails: dict[ImageKey, bytes], title: str = "Bad cases"
) -> str:
    """Return the page.

    Args:
        names: The runs' names, in the order of the verdicts.
        cases: The questions.
        thumbnails: JPEG files by image; each is stored once.
        title: The heading.
    """
    places = {key: place for place, key in enumerate(thumbnails)}
    data = {"runs": list(names), "cases": [case.row(places.get(case.image, -1)) for case in cases]}
    images = [base64.b64encode(content).decode() for content in thumbnails.values()]
    parts = {"TITLE": html.escape(title), "DATA": _json_block(data), "IMAGES": _json_block(images)}
    return fill_page("badcases", parts)


def _json_block(value: object) -> str:
    """Return JSON that no parser of HTML can take for the end of its block, or for a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava report badcases", description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="metrics.json or a folder; the earlier run first"
    )
    parser.add_argument("--output", type=Path, default=Path("badcases.html"), help="default: badcases.html")
    add_picture_flags(parser)
    args = parser.parse_args()
    if len(args.runs) > 2:
        raise SettingsError(f"{len(args.runs)} runs are given; wanted one or two", code="too-many-runs")
    names, cases = read_cases(args)
    thumbnails = pick_thumbnails(args, cases)
    with atomic_write(args.output) as stream:
        stream.write(build_page(names, cases, thumbnails))
    counts = Counter(case.change for case in cases)
    told = ", ".join(f"{count:,} {change}" for change, count in sorted(counts.items()))
    keys = {case.image for case in cases}
    sys.stdout.write(
        f"{args.output}: {len(cases):,} questions of {' and '.join(names)}: {told}; {len(thumbnails):,} of"
        f" {len(keys):,} images; {args.output.stat().st_size / 1e6:.1f} MB\n"
    )


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which pictures a page holds."""
    add = parser.add_argument
    add(
        "--eval-root",
        type=Path,
        default=EVAL_ROOT,
        help=f"holds the benchmarks' folders (default {EVAL_ROOT})",
    )
    add(
        "--thumbnails",
        type=int,
        default=MOST_THUMBNAILS,
        help="the most pictures: of changed answers first, then of wrong ones (default %(default)s)",
    )
    add("--pixels", type=int, default=PIXELS, help="the longer side of a picture (default %(default)s)")


def read_cases(args: argparse.Namespace) -> tuple[list[str], list[Case]]:
    """Return the names of `args.runs` and their questions, before anything is written.

    Raises:
        SettingsError: A flag is out of range, or `args.output` is one of the runs.
        DataError: See `read_side` and `pair_cases`.
    """
    for flag, value, least in (("--thumbnails", args.thumbnails, 0), ("--pixels", args.pixels, 16)):
        if value < least:
            raise SettingsError(f"{flag} is {value}; wanted {least} or more", code="out-of-range")
    sides = [read_side(path) for path in args.runs]
    require_distinct((args.output,), [run.path for side in sides for run in side.values()])
    return shortest_names([path.resolve().parts for path in args.runs]), pair_cases(sides)


def pick_thumbnails(args: argparse.Namespace, cases: Sequence[Case]) -> dict[ImageKey, bytes]:
    """Return the pictures that a page of `cases` holds, the most telling first."""
    keys = dict.fromkeys(case.image for case in sorted(cases, key=lambda case: case.interest))
    return make_thumbnails(ImageFinder(args.eval_root), list(keys)[: args.thumbnails], args.pixels)
