"""Write the results table of several models, to paste into a paper: Markdown, HTML, LaTeX or JSON.

    llava report results playground/data/eval --baseline llava-v1.5-7b --out results.html --bars figures

RUN is a metrics.json or a folder that stands for all below it; NAME=RUN names the model. Models are rows,
benchmarks columns; further tables have the scores by question type. Differences to the baseline have a
paired test, corrected by Holm's method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava.errors import SettingsError
from llava.files import atomic_folder, atomic_write, require_distinct
from llava.report.bars import draw_bars
from llava.report.models import read_models
from llava.report.results_formats import results_html, results_json, results_latex, results_markdown
from llava.report.results_tables import Results, build_results

FORMATS = {".md": "markdown", ".html": "html", ".tex": "latex", ".json": "json"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava report results", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="metrics.json or a folder, or NAME=RUN to name the model")
    add("--baseline", metavar="MODEL", help="the model that others are compared with (default: the first)")
    add("--format", choices=FORMATS.values(), help="default: that of --out's suffix, else markdown")
    add("--out", type=Path, help="write here instead of to stdout")
    add("--bars", type=Path, metavar="FOLDER", help="write bars by type here, a PNG and an SVG per benchmark")
    add("--published", action="store_true", help="add the papers' figures, labelled so")
    args = parser.parse_args()
    kind = args.format or FORMATS.get(args.out.suffix if args.out else ".md")
    if kind is None:
        raise SettingsError(
            f"--out {args.out} does not end in {', '.join(FORMATS)}; name one of them, or a --format",
            code="unknown-format",
        )
    models = read_models(args.runs)
    require_distinct((args.out,), [run.path for model in models for run in model.runs.values()])
    results = build_results(models, args.baseline, published=args.published)
    text = _format(results, kind)
    if args.bars:
        with atomic_folder(args.bars) as folder:
            for table in results.types:
                (folder / f"{table.name}.png").write_bytes(draw_bars(table, "png"))
                (folder / f"{table.name}.svg").write_bytes(draw_bars(table, "svg"))
    if args.out:
        with atomic_write(args.out) as stream:
            stream.write(text)
    else:
        sys.stdout.write(text)


def _format(results: Results, kind: str) -> str:
    if kind == "html":
        return results_html(results, {table.name: draw_bars(table, "svg") for table in results.types})
    return {"markdown": results_markdown, "latex": results_latex, "json": results_json}[kind](results)
