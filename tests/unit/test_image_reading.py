"""Whatever an image file holds, is called or claims to be, only a bad image comes of it."""

from __future__ import annotations

import base64
import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, UnidentifiedImageError
from transformers import CLIPImageProcessorPil, PretrainedConfig

from llava.data.checks.image_files import find_other_suffix, stat_images
from llava.errors import DataError
from llava.image_reading import (
    FORMATS,
    find_name_problem,
    has_image,
    image_path,
    load_image_from_base64,
    open_image,
    read_image,
    to_rgb,
)
from llava.images import process_images
from llava.infer.engine.image_loading import load_pixels
from llava.infer.engine.requests import ImageFile
from llava.infer.fetch import resolve_image
from support.errors import raises_code

# Commands hide Pillow's warnings (llava/log.py).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "vg/VG_100K/1.jpg",
        "./a.jpg",
        "a/../b.jpg",
        "a//b.jpg",
        "..a/b...jpg",
        "~/a.jpg",
        "at 12:30.png",
    ],
)
def test_a_name_under_the_image_folder_is_taken(name: str, tmp_path: Path) -> None:
    assert image_path(tmp_path, name, "q") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/a.jpg", "//host/a.jpg", "\\a.jpg", "\\\\host\\a.jpg", "C:\\a.jpg", "c:a.jpg", "C:/a.jpg"),
        *("../a.jpg", "..", "a/../../b.jpg", "a\\..\\..\\b.jpg", "./../a.jpg", "a/b/../../../c/d/e.jpg"),
        *("https://host/a.jpg", "file:///a.jpg", "", " ", ".", "a/..", "a\0.jpg", "a\ud83d.jpg"),
        *(None, 3, ["a.jpg"], {"path": "a.jpg"}, True),
    ],
)
def test_a_name_that_leaves_the_image_folder_is_refused(name: object, tmp_path: Path) -> None:
    with raises_code("bad-image-name", DataError) as error:
        image_path(tmp_path, name, "q.jsonl: question 3")
    assert str(error.value).startswith("q.jsonl: question 3: ")
    assert "\n" not in str(error.value)


def test_a_link_inside_the_folder_is_the_users_own(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "there.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/here.png").symlink_to(tmp_path / "there.png")
    assert read_image(image_path(tmp_path / "images", "here.png", "q")).size == (4, 4)


# --- files ---


def odd_files(folder: Path) -> dict[str, str]:
    """Names under `folder` that are no image files, with the codes of reading them."""
    (folder / "folder.jpg").mkdir()
    (folder / "file").write_text("")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {
        **dict.fromkeys(("folder.jpg", "gone.jpg", "pipe.jpg", "file/a.jpg", "no/a.jpg"), "missing-image"),
        **dict.fromkeys(("loop.jpg", "a" * 5000 + ".jpg", "a\0.jpg"), "unreadable-image"),
    }


def test_what_is_no_file_is_a_bad_image(tmp_path: Path) -> None:
    for name, code in odd_files(tmp_path).items():
        readers: list[Callable[[Path], object]] = [
            read_image,
            lambda path: resolve_image(str(path)),
            lambda path: load_pixels(ImageFile(path), None, PretrainedConfig()),
        ]
        for reader in readers:
            with raises_code(code, DataError) as error:
                reader(tmp_path / name)
            assert str(error.value).startswith(str(tmp_path / name))
        assert not has_image(tmp_path, name)
        assert find_other_suffix(tmp_path, name) is None
        assert stat_images(tmp_path, pa.array([name]))[0, 0] == -1
    with raises_code("missing-image", DataError):
        read_image(Path("/dev/zero"))


# --- contents ---


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError, NotImplementedError, AttributeError, OverflowError, MemoryError, KeyError, EOFError),
        *(struct.error, SyntaxError, RecursionError, AssertionError, UnidentifiedImageError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ],
)
def test_any_exception_of_a_decoder_is_a_bad_image(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise error("two\nlines")

    for step in ("_open", "load_prepare"):
        with monkeypatch.context() as patched:
            patched.setattr(f"PIL.PngImagePlugin.PngImageFile.{step}", fail)
            with raises_code("unreadable-image", DataError) as caught:
                read_image(tmp_path / "a.png")
            assert str(caught.value).startswith(f"{tmp_path / 'a.png'}: ")
            assert "\n" not in str(caught.value)


def encoded(format: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((24, 18), 60).convert(mode).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(format))
    assert read_image(tmp_path / "a.jpg").size == (24, 18)


@pytest.mark.parametrize("format", ["EPS", "TGA", "ICO", "DDS", "SPIDER"])
def test_other_formats_are_not_opened(format: str, tmp_path: Path) -> None:
    content = encoded(format, "F" if format == "SPIDER" else "RGB")
    (tmp_path / "a.jpg").write_bytes(content)
    with raises_code("unreadable-image", DataError) as error:
        read_image(tmp_path / "a.jpg")
    assert "JPEG" in str(error.value)  # says what it could be
    with raises_code("unreadable-image", DataError):
        load_image_from_base64(base64.b64encode(content))


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return content with some bytes changed, a piece moved, or the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 3, 20])):
        data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
    if chance.random() < 0.3:
        start, length = chance.randrange(len(data)), chance.randrange(1, 40)
        data[start : start + length] = data[chance.randrange(len(data)) :][:length]
    return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)


def test_damaged_files_of_every_format_are_read_or_refused() -> None:
    chance = random.Random(7)
    refused = 0
    for content in [encoded(format, mode) for format in FORMATS for mode in ("RGB", "L")]:
        for _ in range(30):
            try:
                with open_image(mutated(content, chance)) as image:
                    to_rgb(image)
            except DataError:
                refused += 1
    assert refused > 100


# --- sizes ---


def png_of_size(width: int, height: int) -> bytes:
    """A small file that says it is large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9)))


@pytest.mark.parametrize(
    "size", [(60000, 1), (1, 60000), (60000, 60), (13_378, 13_000), (13_377, 13), (50_000, 50_000)]
)
def test_sizes_that_padding_or_resizing_would_make_huge_are_refused(
    size: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png_of_size(*size))
    with raises_code("image-size" if max(size) < 50_000 or min(size) < 100 else "unreadable-image") as error:
        read_image(tmp_path / "a.png")
    assert str(error.value).startswith(f"{tmp_path / 'a.png'}: ")


@pytest.mark.parametrize("aspect", ["pad", "anyres", None])
def test_a_strip_is_refused_before_it_is_padded_or_resized(aspect: str | None) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    settings: Any = SimpleNamespace(image_aspect_ratio=aspect, image_grid_pinpoints=[[112, 56]])
    with raises_code("image-size", DataError):
        process_images([Image.new("RGB", (20_000, 1))], processor, settings)
    assert len(process_images([Image.new("RGB", (3_000, 3))], processor, settings)) == 1


def test_the_name_rule_is_that_of_windows_too() -> None:
    assert find_name_problem("a\\b.jpg") is None
    assert find_name_problem("a\\..\\..\\b.jpg") is not None
