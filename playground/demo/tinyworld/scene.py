"""What a scene is made of, and how one is drawn by lot. Knows neither pixels nor questions."""

from __future__ import annotations

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
ITEMS = ("flag", "key", "cup", "bell", "kite")
PLACES = ("desert", "meadow", "sea", "snow", "street", "sunset")
WORDS = ("sun", "box", "hat", "cat", "map", "ice", "zoo", "jam", "fox", "pen")
SIDE = 3
"""Cells per row and per column."""
POSITIONS = (
    "top-left", "top", "top-right",
    "left", "centre", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
"""What each cell is called, row by row."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object in a cell (0..8, row by row), holding an item."""

    cell: int
    shape: str
    colour: str
    item: str

    @property
    def row(self) -> int:
        return self.cell // SIDE

    @property
    def column(self) -> int:
        return self.cell % SIDE


@dataclass(frozen=True, slots=True)
class Scene:
    """A place, a sign with a word in one cell, and four to six objects; `seed` also seeds its pixels."""

    seed: int
    place: str
    sign_cell: int
    word: str
    things: tuple[Thing, ...]


def draw_scene(seed: int) -> Scene:
    """The scene of a seed. The same seed gives the same scene on every machine."""
    rng = random.Random(f"scene {seed}")
    count = rng.randint(4, 6)
    cells = rng.sample(range(SIDE * SIDE), count + 1)
    shapes = _with_repeats(rng, SHAPES, count)
    colours = _with_repeats(rng, COLOURS, count)
    things = [
        Thing(cell, shape, colour, rng.choice(ITEMS))
        for cell, shape, colour in zip(cells[1:], shapes, colours, strict=True)
    ]
    return Scene(
        seed=seed,
        place=rng.choice(PLACES),
        sign_cell=cells[0],
        word=rng.choice(WORDS),
        things=tuple(sorted(things, key=lambda thing: thing.cell)),
    )


def _with_repeats(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values, one of them 1 to 4 times: with plain lots, three of a kind would hardly occur."""
    main, *others = rng.sample(values, len(values))
    copies = min(rng.randint(1, 4), count - 1)
    rest = [rng.choice(others) for _ in range(count - copies)]
    lot = [main] * copies + rest
    rng.shuffle(lot)
    return lot
