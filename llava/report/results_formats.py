"""Write the tables of `llava report results` as Markdown, HTML, LaTeX and JSON.

Names come from folders and files: each format escapes them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from dataclasses import asdict

from llava.report.page_files import fill_page
from llava.report.results_tables import ResultCell, ResultRow, Results, ResultTable
from llava.schema import JsonObject
from llava.scoring.markup import escape_latex, escape_markdown, printable

# A hyphen that is a minus sign.
_MINUS = re.compile(r"(^|[ \[])-(?=\d)")


def results_markdown(results: Results) -> str:
    """Return the tables as Markdown, each cell's lines below each other."""
    blocks = [f"## {escape_markdown(table.title)}\n\n{_markdown_table(table)}" for table in results.tables]
    notes = "\n".join(f"- {escape_markdown(note)}" for note in results.notes)
    return "\n\n".join([blocks[0], notes, *blocks[1:]]) + "\n"


def _markdown_table(table: ResultTable) -> str:
    lines = [[table.corner, *map(escape_markdown, table.columns)], ["---", *["---:"] * len(table.columns)]]
    for row in table.rows:
        label = ("published: " if row.is_published else "") + escape_markdown(row.label)
        lines.append([label, *("<br>".join(map(escape_markdown, cell.lines)) for cell in row.cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results_html(results: Results, bars: Mapping[str, bytes]) -> str:
    """Return one page with the tables, which loads nothing.

    Args:
        results: The tables.
        bars: An SVG file by the name of the table whose bars it draws.
    """
    main, *types = (_html_table(table) for table in results.tables)
    notes = "".join(f"<li>{_html(note)}</li>" for note in results.notes)
    body = [f"<h1>Results</h1>\n{main}\n<ul class='notes'>{notes}</ul>"]
    for table, text in zip(results.types, types, strict=True):
        body.append(f"<h2>{_html(table.title)}</h2>\n{text}")
        if table.name in bars:
            data = base64.b64encode(bars[table.name]).decode()
            alt = f"bars: {table.title} by {table.corner}"
            body.append(f"<img alt='{_html(alt)}' src='data:image/svg+xml;base64,{data}'>")
    return fill_page("results", {"BODY": "\n".join(body)})


def _html(text: str) -> str:
    return html.escape(printable(text))


def _html_table(table: ResultTable) -> str:
    head = "".join(f"<th scope='col'>{_html(name)}</th>" for name in (table.corner, *table.columns))
    rows = "\n".join(map(_html_row, table.rows))
    parts = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f"<div class='scroll'><table>\n{parts}\n</table></div>"


def _html_row(row: ResultRow) -> str:
    kind = " class='published'" if row.is_published else ""
    badge = "<span class='badge'>published</span>" if row.is_published else ""
    cells = "".join(f"<td>{_html_cell(cell)}</td>" for cell in row.cells)
    return f"<tr{kind}><th scope='row'>{badge}{_html(row.label)}</th>{cells}</tr>"


def _html_cell(cell: ResultCell) -> str:
    first, *rest = map(_html, cell.lines)
    kind = ""
    if cell.difference is not None and cell.is_significant:
        kind = f" class='{'up' if cell.difference.value > 0 else 'down'}'"
    return first + "".join(f"<div{kind if line[0] in '+-' else ''}>{line}</div>" for line in rest)


def results_latex(results: Results) -> str:
    """Return the tables as LaTeX, with booktabs, for a document to input."""
    head = "% needs \\usepackage{booktabs,graphicx}\n"
    notes = " ".join(map(escape_latex, results.notes))
    return head + "\n".join(
        _latex_table(table, notes if table is results.main else "") for table in results.tables
    )


def _latex_table(table: ResultTable, notes: str) -> str:
    head = " & ".join([table.corner, *map(_latex_heading, table.columns)])
    measured, published = (
        [_latex_row(row) for row in table.rows if row.is_published == wanted] for wanted in (False, True)
    )
    body = "\n\\addlinespace\n".join(measured)
    if published:
        body += "\n\\midrule\n" + "\n".join(published)
    notes = f"\n\\par\\medskip\\parbox{{\\textwidth}}{{\\footnotesize {notes}}}" if notes else ""
    return f"""\\begin{{table*}}
\\centering
\\small
\\setlength{{\\tabcolsep}}{{4pt}}
\\caption{{{escape_latex(table.title)}}}
\\medskip
% Scaled down to the width of the text if it is wider.
\\resizebox{{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}}{{!}}{{%
\\begin{{tabular}}{{l{"r" * len(table.columns)}}}
\\toprule
{head} \\\\
\\midrule
{body}
\\bottomrule
\\end{{tabular}}}}{notes}
\\end{{table*}}
"""


def _latex_heading(name: str) -> str:
    """Return a heading of a column, with its words below each other."""
    words = escape_latex(name).replace(" ", r" \\{}")
    return f"\\shortstack[r]{{{words}}}"


def _latex_row(row: ResultRow) -> str:
    """Return a line of LaTeX for each line of the cells."""
    label = escape_latex(row.label) + (" (published)" if row.is_published else "")
    height = max(len(cell.lines) for cell in row.cells)
    lines = []
    for place in range(height):
        texts = [cell.lines[place] if place < len(cell.lines) else "" for cell in row.cells]
        cells = [_MINUS.sub(r"\1$-$", escape_latex(text)) for text in texts]
        if place:
            cells = [f"{{\\scriptsize {text}}}" if text else "" for text in cells]
        lines.append(" & ".join([label if place == 0 else "", *cells]) + r" \\")
    return "\n".join(lines)


def results_json(results: Results) -> str:
    """Return the tables as JSON."""
    value = {
        "models": results.models,
        "baseline": results.baseline,
        "correction": "holm",
        "main": _json_table(results.main),
        "types": [_json_table(table) for table in results.types],
        "notes": results.notes,
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _json_table(table: ResultTable) -> JsonObject:
    return {
        "name": table.name,
        "title": table.title,
        "rows": [
            {
                "name": row.label,
                "published": row.is_published,
                "cells": dict(zip(table.columns, map(_json_cell, row.cells), strict=True)),
            }
            for row in table.rows
        ],
    }


def _json_cell(cell: ResultCell) -> JsonObject | str | None:
    """Return a measured score as an object, a published figure as its text, else None."""
    score = cell.score
    if score is None:
        return cell.published or None
    change = cell.difference and {
        **asdict(cell.difference),
        "p": cell.p,
        "p_holm": cell.adjusted,
        "significant": cell.is_significant,
    }
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n": score.n,
        "of": score.of,
        "partial": score.is_partial,
        "warnings": cell.has_warnings,
        "difference": change,
    }
