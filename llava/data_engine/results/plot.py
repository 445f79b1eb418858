"""Place the points of the plot over rounds: the gain of each arm over the base, with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from llava.schema import JsonObject

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 36
# Arms are told apart by colour and by the shape of their points.
COLOURS = ("#0b6fa4", "#c4560a", "#3f7d20", "#7a3b9c")
# Distance of the arms of one round, so that their intervals do not cover one another.
_APART = 14


@dataclass(frozen=True, slots=True)
class Point:
    """One arm's gain in one round, in pixels from the top left."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one arm."""

    arm: str
    colour: str
    points: list[Point] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plot:
    """All that the page draws: `ticks` are (y, text), `names` are (x, round)."""

    curves: list[Curve]
    ticks: list[tuple[float, str]]
    names: list[tuple[float, str]]
    zero: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def plot_gains(rounds: Sequence[JsonObject]) -> Plot | None:
    """Return the plot of the scored rounds in summary.json, None if there are none."""
    gains = [
        (place, entry["round"], arm, row["vs_base"])
        for place, entry in enumerate(rounds)
        for arm, row in entry["arms"].items()
        if row["vs_base"]
    ]
    if not gains:
        return None
    step = _nice_step(
        max(0.0, *(gain["high"] for *_, gain in gains)) - min(0.0, *(gain["low"] for *_, gain in gains))
    )
    low = step * math.floor(min(0.0, *(gain["low"] for *_, gain in gains)) / step)
    high = step * math.ceil(max(0.0, *(gain["high"] for *_, gain in gains)) / step)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    def x(place: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(rounds), 1)

    arms = list(dict.fromkeys(arm for entry in rounds for arm in entry["arms"]))
    points: dict[str, list[Point]] = defaultdict(list)
    for place, number, arm, gain in gains:
        shift = _APART * (arms.index(arm) - (len(arms) - 1) / 2)
        label = f"round {number}, {arm}: {gain['value']:+.2f} [{gain['low']:.2f}, {gain['high']:.2f}]"
        point = Point(x(place) + shift, y(gain["value"]), y(gain["low"]), y(gain["high"]), label)
        points[arm].append(point)
    curves = [Curve(arm, COLOURS[arms.index(arm) % len(COLOURS)], found) for arm, found in points.items()]
    count = round((high - low) / step)
    ticks = [(y(low + index * step), _signed(low + index * step)) for index in range(count + 1)]
    names = [(x(place), f"round {entry['round']}") for place, entry in enumerate(rounds)]
    return Plot(curves, ticks, names, y(0.0))


def _signed(value: float) -> str:
    text = f"{round(value, 9):+g}"
    return "0" if text in ("+0", "-0") else text


def _nice_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten that divides a span into four to nine steps."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-6) / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 9)
