"""Draw the README's picture: the loop, and the quickstart's scores before and after it.

    python scripts/draw_loop.py --out .github/loop.svg

The scores are those of the quickstart's table in playground/demo/RESULTS.md. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "playground/demo/RESULTS.md"
INK, GREY, BLUE, PAPER, PANEL = "#1f2937", "#b6bec9", "#2563eb", "#ffffff", "#eef3fd"
TARGETED = (7, 9)
# Title, command, centre of the box; clockwise.
STEPS = (
    ("Evaluate by question type", "eval/seed_lora.sh", (0.245, 0.73)),
    ("Find the weak types", "llava report", (0.765, 0.73)),
    ("Add records for these", "llava engine mix", (0.765, 0.27)),
    ("Fine-tune", "finetune_lora_dataengine.sh", (0.245, 0.27)),
)
BOX = (0.46, 0.25)


def main() -> None:
    """Draw the picture into the file named by --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=REPO / ".github/loop.svg", help=".svg or .png")
    out = parser.parse_args().out

    import matplotlib
    from matplotlib import pyplot

    # The same input gives the same bytes.
    matplotlib.rcParams.update({"svg.hashsalt": "llava", "font.family": "DejaVu Sans", "text.color": INK})
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4.4), width_ratios=(1, 1), facecolor=PAPER, layout="constrained"
    )
    draw_steps(left)
    draw_scores(right, read_scores(RESULTS.read_text(encoding="utf-8")))
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, facecolor=PAPER)


def read_scores(text: str) -> list[tuple[int, str, float, float]]:
    """Return (type number, type name, base score, tuned score) of each row of the quickstart's table."""
    section = text[text.index("## The quickstart") :].split("\n## ")[0]
    rows = re.findall(r"^\| (\d) ([\w ]+?) \| ([\d.]+) \| ([\d.]+) \|", section, re.M)
    return [(int(number), name, float(base), float(tuned)) for number, name, base, tuned in rows]


def draw_steps(axes: Any) -> None:
    """Draw the four steps as boxes, with an arrow from each to the next."""
    from matplotlib.patches import FancyBboxPatch

    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    axes.set_title("The loop", fontsize=12, weight="bold")
    width, height = BOX
    for title, command, (x, y) in STEPS:
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=PANEL,
                edgecolor=BLUE,
                linewidth=1.4,
            )
        )
        axes.text(x, y + 0.035, title, ha="center", va="center", fontsize=10.5, weight="bold")
        axes.text(x, y - 0.05, command, ha="center", va="center", fontsize=8.5, family="DejaVu Sans Mono")
    for (_, _, start), (_, _, end) in zip(STEPS, (*STEPS[1:], STEPS[0]), strict=True):
        draw_arrow(axes, start, end)


def draw_arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow from the edge of one box to the edge of the next."""
    across = start[1] == end[1]
    half = BOX[0] / 2 if across else BOX[1] / 2
    axis = 0 if across else 1
    sign = 1 if end[axis] > start[axis] else -1
    tail, head = list(start), list(end)
    tail[axis] += sign * half
    head[axis] -= sign * half
    axes.annotate(
        "",
        xy=head,
        xytext=tail,
        arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 2, "mutation_scale": 18},
    )


def draw_scores(axes: Any, scores: list[tuple[int, str, float, float]]) -> None:
    """Draw a pair of bars for each question type: base and tuned."""
    rows = range(len(scores), 0, -1)
    axes.barh([row + 0.19 for row in rows], [row[2] for row in scores], 0.36, color=GREY, label="base")
    axes.barh([row - 0.19 for row in rows], [row[3] for row in scores], 0.36, color=BLUE, label="tuned")
    axes.set_yticks(list(rows), [name for _, name, _, _ in scores], fontsize=9.5)
    for row, label, (number, _, base, tuned) in zip(rows, axes.get_yticklabels(), scores, strict=True):
        if number in TARGETED:
            label.set_weight("bold")
            axes.text(tuned + 1.5, row - 0.19, f"{tuned - base:+.1f}", va="center", fontsize=9.5, color=BLUE)
    axes.set(xlim=(0, 112), xticks=(0, 25, 50, 75, 100))
    axes.axvline(25, color=INK, lw=0.8, ls=":", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Accuracy in the quickstart, %", fontsize=12, weight="bold")
    axes.set_xlabel("bold: types that the added records are about; dotted: chance", fontsize=9.5)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.42), frameon=False, fontsize=9.5)


if __name__ == "__main__":
    main()
