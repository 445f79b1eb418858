"""A scene as pixels: 96 x 96, so that one cell is one 16-pixel patch for a tower that sees 48 x 48."""

from __future__ import annotations

import random

from PIL import Image, ImageChops, ImageDraw

from .scene import SIDE, Scene, Thing

CELL = 32
SIZE = CELL * SIDE
_PIXEL = 2
"""Image pixels per dot of a glyph: the tower sees each dot as one pixel."""
_RGB = {
    "red": (215, 35, 35),
    "green": (25, 140, 50),
    "blue": (40, 70, 215),
    "yellow": (245, 215, 20),
    "purple": (150, 45, 170),
    "white": (255, 255, 255),
}
_GROUND = {
    "desert": (228, 205, 160),
    "meadow": (185, 220, 165),
    "sea": (165, 205, 230),
    "snow": (225, 232, 240),
    "street": (190, 190, 190),
    "sunset": (240, 185, 170),
}
_ITEM_DOTS = {
    "flag": ("11110", "11110", "10000", "10000", "10000"),
    "key": ("11100", "10100", "11111", "00101", "00101"),
    "cup": ("10001", "10001", "10001", "10001", "11111"),
    "bell": ("00100", "01110", "01110", "11111", "00100"),
    "kite": ("00011", "00111", "01110", "00100", "11000"),
}
_LETTER_DOTS = {
    "a": ("010", "101", "111", "101", "101"),
    "b": ("110", "101", "110", "101", "110"),
    "c": ("111", "100", "100", "100", "111"),
    "e": ("111", "100", "110", "100", "111"),
    "f": ("111", "100", "110", "100", "100"),
    "h": ("101", "101", "111", "101", "101"),
    "i": ("111", "010", "010", "010", "111"),
    "j": ("001", "001", "001", "101", "111"),
    "m": ("101", "111", "111", "101", "101"),
    "n": ("110", "101", "101", "101", "101"),
    "o": ("111", "101", "101", "101", "111"),
    "p": ("111", "101", "111", "100", "100"),
    "s": ("111", "100", "111", "001", "111"),
    "t": ("111", "010", "010", "010", "010"),
    "u": ("101", "101", "101", "101", "111"),
    "x": ("101", "101", "010", "101", "101"),
    "z": ("111", "001", "010", "100", "111"),
}
_BLACK = (15, 15, 15)


def draw(scene: Scene) -> Image.Image:
    """The scene as a 96 x 96 RGB image; equal scenes give equal pixels."""
    rng = random.Random(f"pixels {scene.seed}")
    image = Image.new("RGB", (SIZE, SIZE), _GROUND[scene.place])
    pen = ImageDraw.Draw(image)
    _draw_ground(pen, rng, scene.place)
    for thing in scene.things:
        _draw_thing(pen, rng, thing)
    _draw_sign(pen, scene)
    half = SIZE // _PIXEL
    noise = Image.frombytes("L", (half, half), rng.randbytes(half * half)).point(
        [value // 8 for value in range(256)]
    )
    grey = noise.resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return ImageChops.subtract(image, Image.merge("RGB", (grey, grey, grey)))


def _draw_ground(pen: ImageDraw.ImageDraw, rng: random.Random, place: str) -> None:
    """A faint texture, so that a place is more than its colour."""
    red, green, blue = _GROUND[place]
    darker = (red - 22, green - 22, blue - 22)
    start = rng.randrange(8)
    if place in ("sea", "desert"):
        for y in range(start, SIZE, 12):
            pen.line([(x, y + (4 if x % 16 else 0)) for x in range(0, SIZE + 8, 8)], fill=darker)
    elif place in ("street", "sunset"):
        for y in range(start, SIZE, 12):
            pen.line((0, y, SIZE, y), fill=darker)
    else:
        for _ in range(40):
            x, y = rng.randrange(SIZE), rng.randrange(SIZE)
            pen.line((x, y, x, y + 3), fill=darker)


def _draw_thing(pen: ImageDraw.ImageDraw, rng: random.Random, thing: Thing) -> None:
    """The shape at the upper left of its cell, its item in the lower right corner."""
    size = rng.choice((17, 19, 21))
    left = thing.column * CELL + rng.randint(1, 3)
    top = thing.row * CELL + rng.randint(1, 3)
    right, bottom = left + size, top + size
    middle, height = left + size // 2, top + size // 2
    colour = _RGB[thing.colour]
    if thing.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour, outline=_BLACK)
    elif thing.shape == "ring":
        pen.ellipse((left, top, right, bottom), outline=_BLACK, width=7)
        pen.ellipse((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=5)
    elif thing.shape == "square":
        pen.rectangle((left, top, right, bottom), fill=colour, outline=_BLACK)
    elif thing.shape == "triangle":
        pen.polygon([(middle, top), (right, bottom), (left, bottom)], fill=colour, outline=_BLACK)
    elif thing.shape == "diamond":
        pen.polygon(
            [(middle, top), (right, height), (middle, bottom), (left, height)], fill=colour, outline=_BLACK
        )
    else:
        third = size // 3
        pen.rectangle((left + third, top, right - third, bottom), fill=colour, outline=_BLACK)
        pen.rectangle((left, top + third, right, bottom - third), fill=colour, outline=_BLACK)
        pen.rectangle((left + third + 1, top + 1, right - third - 1, bottom - 1), fill=colour)
    _draw_dots(pen, _ITEM_DOTS[thing.item], thing.column * CELL + 20, thing.row * CELL + 20)


def _draw_sign(pen: ImageDraw.ImageDraw, scene: Scene) -> None:
    left, top = scene.sign_cell % SIDE * CELL, scene.sign_cell // SIDE * CELL
    pen.rectangle((left + 1, top + 7, left + 30, top + 22), fill=(250, 250, 250), outline=_BLACK)
    for index, letter in enumerate(scene.word):
        _draw_dots(pen, _LETTER_DOTS[letter], left + 4 + index * 4 * _PIXEL, top + 10)


def _draw_dots(pen: ImageDraw.ImageDraw, rows: tuple[str, ...], left: int, top: int) -> None:
    for y, row in enumerate(rows):
        for x, dot in enumerate(row):
            if dot == "1":
                x0, y0 = left + x * _PIXEL, top + y * _PIXEL
                pen.rectangle((x0, y0, x0 + _PIXEL - 1, y0 + _PIXEL - 1), fill=_BLACK)
