"""Draw the curves of several training runs: one panel per quantity, one colour per run.

With many points a smoothed line is drawn over the faint logged values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llava.errors import SettingsError
from llava.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
# Curves with fewer points are not smoothed.
SMOOTHED_FROM = 30
# Half-life of the smoothing, as a fraction of all points.
_HALF_LIFE = 0.02


class Log(Protocol):
    """The log of one run, as far as it is drawn."""

    @property
    def name(self) -> str:
        """The name in the legend."""

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and values logged under `key`."""

    def keys(self) -> list[str]:
        """Return the keys that have a series."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity: its key in the log, title and unit. Values are multiplied by `factor`."""

    key: str
    title: str
    unit: str
    factor: float = 1.0
    is_smoothed: bool = True


NATS = "nats a token"
PANELS = (
    Panel("loss", "Training loss", NATS),
    Panel("eval_loss", "Validation loss", NATS, is_smoothed=False),
    Panel("learning_rate", "Learning rate", "learning rate", is_smoothed=False),
    Panel("grad_norm", "Gradient norm", "L2 norm before clipping"),
    Panel("tokens_per_second", "Throughput, all devices", "thousand tokens a second", 1e-3),
    Panel("images_per_second", "Images, all devices", "images a second"),
    Panel("mfu", "Model FLOPs utilisation", "% of the peak", 100.0),
)
KIND_PREFIX = "eval_loss/"


def select_panels(logs: Sequence[Log]) -> list[Panel]:
    """Return the panels with logged values; validation losses by question type come last."""
    keys = dict.fromkeys(key for log in logs for key in log.keys())  # noqa: SIM118
    kinds = sorted(key for key in keys if key.startswith(KIND_PREFIX))
    by_kind = [
        Panel(key, f"Validation: {key.removeprefix(KIND_PREFIX)}", NATS, is_smoothed=False) for key in kinds
    ]
    return [panel for panel in PANELS if panel.key in keys] + by_kind


def smooth(values: Sequence[float]) -> list[float]:
    """Return the bias-corrected exponential moving average of `values`, skipping NaN."""
    decay = 0.5 ** (1 / max(1.0, _HALF_LIFE * len(values)))
    total = weight = 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight if weight else math.nan)
    return means


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; its size is in inches.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "drawing needs matplotlib: pip install 'llava[plot]'", code="missing-matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_curves(logs: Sequence[Log], out: Path) -> None:
    """Draw all panels to the PNG file `out`.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    shown = select_panels(logs)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    legend_rows = -(-(len(logs) + 1) // COLUMNS)
    figure = new_figure(4.6 * columns, 3.1 * rows + 0.3 * legend_rows + 0.2)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    last = max(step for log in logs for panel in shown for step in log.series(panel.key)[0])
    for axes, panel in zip(grid, shown, strict=False):
        _draw_panel(axes, panel, logs)
        axes.set_xlim(-0.03 * last, 1.03 * last)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    _add_legend(figure, logs)
    with atomic_write(out, binary=True) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _draw_panel(axes: Axes, panel: Panel, logs: Sequence[Log]) -> None:
    for index, log in enumerate(logs):
        steps, values = log.series(panel.key)
        values = [panel.factor * value for value in values]
        color = _color(index)
        if panel.is_smoothed and len(values) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values), color=color, linewidth=1.6)
        else:
            marker = "o" if len(values) < SMOOTHED_FROM else None
            axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3.5)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("optimizer steps", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if panel.key == "learning_rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _add_legend(figure: Figure, logs: Sequence[Log]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_color(index), linewidth=2, label=log.name) for index, log in enumerate(logs)
    ]
    handles.append(Line2D([], [], color="gray", alpha=0.4, linewidth=0.8, label="faint: before smoothing"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(COLUMNS, len(handles)), frameon=False
    )


def _color(index: int) -> str:
    return f"C{index % 10}"
