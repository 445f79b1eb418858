"""Draw the scores by question type as bars with their 95 % intervals, one figure for a benchmark."""

from __future__ import annotations

import io
from typing import Literal

from llava.report.curves import new_figure
from llava.report.results_tables import ResultTable
from llava.scoring.markup import printable

# The share of a type's height that its bars take.
_FILLED = 0.8
_LONGEST_NAME = 60


def draw_bars(table: ResultTable, kind: Literal["png", "svg"]) -> bytes:
    """Return the file of a figure with a group of bars for each type, a bar for each model.

    `*` marks a difference to the baseline that is significant after the correction; partial and doubtful
    scores have the marks that they have in tables.

    Args:
        table: Types by models.
        kind: The format.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    models, count = table.columns, len(table.rows)
    figure = new_figure(7.5, 1.1 + 0.22 * len(models) + count * (0.16 + 0.17 * len(models)))
    from matplotlib.patches import Patch

    axes = figure.subplots()
    height = _FILLED / len(models)
    for index, _ in enumerate(models):
        cells = [row.cells[index] for row in table.rows]
        values = [(cell.score and cell.score.value) or 0.0 for cell in cells]
        places = [at + (index - (len(models) - 1) / 2) * height for at in range(count)]
        axes.barh(places, values, 0.92 * height, color=f"C{index % 10}")
        for at, value, cell in zip(places, values, cells, strict=True):
            end = value
            if cell.score and cell.score.low is not None and cell.score.high is not None:
                end = cell.score.high
                axes.plot([cell.score.low, end], [at, at], color="0.25", linewidth=0.9)
            if marks := cell.marks + ("*" if cell.is_significant else ""):
                axes.annotate(marks, (end, at), xytext=(3, -1), textcoords="offset points", va="center")
    # Names are shown as they are: a $ in one begins no formula.
    axes.set_yticks(range(count), [_short(row.label) for row in table.rows], parse_math=False)
    axes.set_title(table.title, fontsize=11, parse_math=False)
    axes.set_ylim(count - 0.5, -0.5)
    tops = [cell.score.top for row in table.rows for cell in row.cells if cell.score]
    axes.set_xlim(0, 1.03 * max(tops))
    axes.set_xlabel("score, with its 95 % interval", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=f"C{index % 10}") for index in range(len(models))]
    legend = figure.legend(patches, ["?"] * len(models), loc="outside upper left", frameon=False, fontsize=9)
    for text, name in zip(legend.get_texts(), models, strict=True):
        # Set afterwards: a legend leaves out labels that begin with "_".
        text.set_text(_short(name))
        text.set_parse_math(False)
    stream = io.BytesIO()
    # Without its date a figure of the same scores is the same file.
    figure.savefig(stream, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
