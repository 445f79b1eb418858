"""Pixels equal the original's to the bit, and errors name the broken image."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.anyres import get_anyres_image_grid_shape, merge_tiles, select_best_resolution
from llava.image_reading import load_image_from_base64, read_image
from llava.images import expand2square, mean_colour, process_images
from support.errors import raises_code


def processor_of(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def config(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def digest(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.numpy().astype("<f4").tobytes()).hexdigest()


def golden_rows(golden: Path) -> list[dict[str, Any]]:
    return json.loads((golden / "iv_images.json").read_text(encoding="utf-8"))["results"]


# Pillow 13, which the original's pixels are from, computes the overview of these in tiles in another way.
OTHERWISE_BEFORE_PILLOW_13 = {("b_333x500.png", 336, "anyres"), ("f_13x200.png", 56, "anyres")}


def test_pixels_are_the_originals_to_the_bit(golden: Path) -> None:
    checked = 0
    left_out = OTHERWISE_BEFORE_PILLOW_13 if int(PIL.__version__.split(".")[0]) < 13 else set()
    for row in golden_rows(golden):
        if "file" not in row or "sha256_f32le" not in row:
            continue
        side = int(row["proc"])
        if (row["file"], side, row["aspect"]) in left_out:
            continue
        grid = [
            [wide * side, high * side]
            for wide, high in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))[: 3 if side == 56 else 5]
        ]
        settings = config(image_aspect_ratio=row["aspect"], image_grid_pinpoints=grid)
        pixels = process_images([read_image(golden / "images" / row["file"])], processor_of(side), settings)
        assert isinstance(pixels, torch.Tensor)
        assert list(pixels[0].shape) == row["shape"]
        assert digest(pixels[0]) == row["sha256_f32le"], (row["file"], side, row["aspect"])
        checked += 1
    assert checked == 54 - len(left_out)  # pad and plain of ten images at two sizes, and tiles


def test_batches_of_pixels_are_the_originals(golden: Path) -> None:
    files = ["a_640x480.png", "b_333x500.png", "c_100x37.png", "d_56x56.png"]
    images = [read_image(golden / "images" / file) for file in files]
    rows = [row for row in golden_rows(golden) if "multi" in row and "sha256_f32le" in row]
    assert rows
    for row in rows:
        pixels = process_images(images, processor_of(56), config(image_aspect_ratio=row["aspect"]))
        assert isinstance(pixels, torch.Tensor)
        assert digest(pixels) == row["sha256_f32le"]


def test_squares_are_the_originals(golden: Path) -> None:
    for row in golden_rows(golden):
        if "expand2square" in row:
            square = expand2square(read_image(golden / "images" / row["file"]), (122, 116, 104))
            assert list(square.size) == row["expand2square"]["size"]
            assert hashlib.sha256(square.tobytes()).hexdigest() == row["expand2square"]["sha256"], row["file"]


def test_grids_are_the_originals(golden: Path) -> None:
    cases = json.loads((golden / "iv_images.json").read_text(encoding="utf-8"))["select_best_resolution"]
    for case in cases:
        size, grid = tuple(case["size"]), [tuple(pair) for pair in case["grid"]]
        assert list(select_best_resolution(size, grid)) == case["res"]
        assert list(get_anyres_image_grid_shape(size, str(case["grid"]), 336)) == case["grid_shape"]


def test_images_of_unequal_sizes_are_stacked() -> None:
    images = [Image.new("RGB", (40, 20), "red"), Image.new("L", (10, 90))]
    pixels = process_images(images, processor_of(56), config(image_aspect_ratio="pad"))
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (2, 3, 56, 56)
    assert process_images(images, processor_of(56), config())[1].shape == (3, 56, 56)


def test_an_image_of_one_pixel() -> None:
    pixels = process_images([Image.new("RGB", (1, 1))], processor_of(56), config(image_aspect_ratio="pad"))
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (1, 3, 56, 56)


def test_unequal_numbers_of_tiles_give_a_list() -> None:
    settings = config(image_aspect_ratio="anyres", image_grid_pinpoints="[(112, 112), (56, 168)]")
    images = [Image.new("RGB", (100, 100)), Image.new("RGB", (20, 90))]
    tiled = process_images(images, processor_of(56), settings)
    assert [view.shape[0] for view in tiled] == [5, 4]
    settings.image_grid_pinpoints = "many"
    with raises_code("bad-grid-pinpoints") as error:
        process_images(images, processor_of(56), settings)
    assert "'many'" in str(error.value)


def test_padding_goes_around_a_wide_image() -> None:
    square = expand2square(Image.new("RGB", (5, 2), "white"), (0, 0, 0))
    assert [bool(row.any()) for row in np.asarray(square)] == [False, True, True, False, False]
    assert mean_colour(processor_of(56)) == (122, 116, 104)


def test_merged_tiles_are_in_image_order_without_padding() -> None:
    # Two tiles across and one down, two patches a side. Each value is 10 * row + column.
    tiles = [[[10 * row + 2 * tile + column for column in (0, 1)] for row in (0, 1)] for tile in (0, 1)]
    views = torch.tensor([[-1.0] * 4, *([*tile[0], *tile[1]] for tile in tiles)])[:, :, None]
    kept = merge_tiles(views, (2, 1), (400, 200), None)[:, 0].tolist()
    assert kept == [-1, -1, -1, -1, 0, 1, 2, 3, 10, 11, 12, 13]
    newline = torch.tensor([99.0])
    rows = merge_tiles(views, (2, 1), (400, 200), newline)[4:, 0].tolist()
    assert rows == [0, 1, 2, 3, 99, 10, 11, 12, 13, 99]
    # A tall image leaves the outer columns black, which are removed.
    assert merge_tiles(views, (2, 1), (100, 200), newline)[4:, 0].tolist() == [1, 2, 99, 11, 12, 99]


def saved(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    values = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 256 + 17)
    else:
        image = Image.fromarray(values).convert("RGB").convert(mode)
    read = read_image(saved(image, tmp_path / "image.png"))
    assert read.mode == "RGB"
    # Black and white and palette images have already lost some of the values.
    exact = values if mode not in ("1", "P") else np.asarray(image.convert("RGB"))[..., 0]
    assert np.array_equal(np.asarray(read)[..., 0], exact)


def test_cmyk_and_transparent_palettes_are_read_as_rgb(tmp_path: Path) -> None:
    cmyk = saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.jpg")
    assert np.abs(np.asarray(read_image(cmyk))[0, 0].astype(int) - [255, 0, 0]).max() < 12
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    path = saved(palette, tmp_path / "b.png", transparency=1)
    assert read_image(path).getpixel((0, 0)) == (10, 20, 30)


def test_errors_name_the_broken_image(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((80, 80), 50), tmp_path / "whole.png").read_bytes()
    for name, content in {
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"<html>",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with raises_code("unreadable-image") as error:
            read_image(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with raises_code("missing-image") as error:
        read_image(tmp_path / "gone.png")
    assert "gone.png" in str(error.value)
    with raises_code("unreadable-image"):  # a name longer than the system allows
        read_image(tmp_path / ("a" * 300 + ".png"))


def test_base64_images_are_decoded_or_refused() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), "blue").save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    assert load_image_from_base64(text).size == (3, 2)
    for broken in (text[: len(text) // 2], "no base64!", base64.b64encode(b"no image").decode()):
        with raises_code("unreadable-image"):
            load_image_from_base64(broken)
