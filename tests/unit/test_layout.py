"""The data folder: what is counted, which images are missed, and OCR-VQA's files made into JPEGs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from llava.errors import DataError, SettingsError
from llava.layout import folders
from llava.layout.__main__ import main
from llava.layout.folders import FOLDERS, Folder, Listing, check_named, count_images
from llava.layout.ocr_vqa import Options, convert_folder
from support.errors import raises_code


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["llava layout", *map(str, arguments)])
    main()


# --- check ---


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two images everywhere; the expected counts are made to fit."""
    small = tuple(Folder(folder.path, 2, folder.source, folder.exact) for folder in FOLDERS)
    monkeypatch.setattr("llava.layout.__main__.FOLDERS", small)
    for folder in small:
        (tmp_path / folder.path).mkdir(parents=True)
        for name in ("1.jpg", "2.JPG"):
            (tmp_path / folder.path / name).touch()
    return tmp_path


def training_file(root: Path, *images: object) -> Path:
    rows = [{"id": place, "image": image, "conversations": []} for place, image in enumerate(images)]
    path = root / "mix.json"
    path.write_text(json.dumps([*rows, {"id": "text alone", "conversations": []}]))
    return path


def test_a_complete_folder_passes(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "check", "--root", root)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(FOLDERS)
    assert all(line.endswith("complete") for line in lines[1:])


def test_a_missing_and_a_short_folder_are_named_with_their_source(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "vg/VG_100K/1.jpg").unlink()
    for path in (root / "coco/train2017").iterdir():
        path.unlink()
    (root / "coco/train2017").rmdir()
    with raises_code("incomplete-data", DataError) as error:
        command(monkeypatch, "check", "--root", root)
    assert str(error.value).endswith("coco/train2017 is missing; vg/VG_100K is short")
    out = capsys.readouterr().out
    assert "missing; from http://images.cocodataset.org/zips/train2017.zip" in out
    assert "short; from https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip" in out


def test_ocr_vqa_in_other_formats_is_told_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "ocr_vqa/images/1.jpg").rename(root / "ocr_vqa/images/1.gif")
    command(monkeypatch, "check", "--root", root)
    assert f"1 files of another format; run: python -m llava.layout ocrvqa {root}" in capsys.readouterr().out


def test_the_images_a_training_file_names_decide(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = training_file(root, "vg/VG_100K/1.jpg", "gqa/images/1.jpg", "vg/VG_100K/1.jpg")
    (root / "textvqa/train_images/1.jpg").unlink()
    command(monkeypatch, "check", "--root", root, "--data", named)
    assert "3 records name 2 images, 0 missing" in capsys.readouterr().out


def test_missing_images_are_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = training_file(root, "vg/VG_100K/1.jpg", "gqa/images/9.jpg", "nowhere/1.jpg", "gqa/images/9.jpg")
    with raises_code("incomplete-data", DataError) as error:
        command(monkeypatch, "check", "--root", root, "--data", named, "--missing", root / "missing.json")
    assert f"2 images of {named}" in str(error.value)
    assert "gqa/images/9.jpg" in str(error.value)
    assert json.loads((root / "missing.json").read_text()) == {
        str(named): ["gqa/images/9.jpg", "nowhere/1.jpg"]
    }


@pytest.mark.parametrize("image", [3, ["a.jpg", "b.jpg"], "../1.jpg", "/1.jpg"])
def test_an_image_that_is_no_path_is_refused(root: Path, image: object) -> None:
    with raises_code("bad-image-name", DataError) as error:
        check_named(root, training_file(root, image))
    assert "record 0" in str(error.value)


def test_each_folder_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    files = folders._files
    monkeypatch.setattr(folders, "_files", lambda path: listed.append(path) or files(path))
    listing = Listing(root)
    assert [listing.has(f"gqa/images/{name}.jpg") for name in "1313"] == [True, False, True, False]
    assert not listing.has("nowhere/1.jpg")
    assert listed == [root / "gqa/images"]


def test_a_folder_is_no_image_and_a_link_to_one_is(root: Path) -> None:
    (root / "gqa/images/3.jpg").mkdir()
    (root / "gqa/images/4.jpg").symlink_to(root / "gqa/images/1.jpg")
    assert not Listing(root).has("gqa/images/3.jpg")
    assert not Listing(root).has("a" * 5000 + "/" + "a" * 5000)
    assert Listing(root).has("gqa/images/4.jpg")
    assert count_images(root, Folder("gqa/images", 3, "")).jpg == 3


def test_real_records_are_looked_up_by_line(realdata: Path, root: Path) -> None:
    named = check_named(root, realdata / "mix665k/llava_v1_5_mix1k.jsonl")
    assert (named.records, named.images, len(named.missing)) == (1000, 997, 997)


def test_a_list_of_missing_images_needs_a_file_that_names_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises_code("missing-flag", SettingsError):
        command(monkeypatch, "check", "--root", root, "--missing", root / "missing.json")


def test_a_root_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_code("missing-folder", DataError) as error:
        command(monkeypatch, "check", "--root", tmp_path / "nowhere")
    assert "nowhere" in str(error.value)


# --- OCR-VQA ---


@pytest.fixture
def covers(tmp_path: Path) -> Path:
    """Book covers as they come: every format, names that lie, one cut short, one that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    red = Image.new("RGB", (60, 40), (200, 10, 10))
    red.save(folder / "jpeg.jpg")
    red.save(folder / "upper.JPG")
    red.save(folder / "long.jpeg")
    red.save(folder / "lies.gif", "JPEG")
    red.save(folder / "png_inside.jpg", "PNG")
    red.convert("RGBA").save(folder / "alpha.png")
    red.save(folder / "dotted.name.webp")
    red.save(folder / "none", "PNG")
    blue = Image.new("RGB", (60, 40), (10, 10, 200)).convert("P")
    red.convert("P").save(folder / "moving.gif", save_all=True, append_images=[blue])
    (folder / "cut.png").write_bytes((folder / "alpha.png").read_bytes()[:60])
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "notes.txt").write_text("not an image")
    return folder


MADE = ("jpeg", "upper", "long", "lies", "png_inside", "alpha", "dotted.name", "none", "moving")


def test_every_readable_file_becomes_a_real_jpeg(covers: Path) -> None:
    before = (covers / "lies.gif").read_bytes()
    outcome = convert_folder(covers, Options(), workers=2)
    assert outcome.ways == {"kept": 1, "copied": 3, "converted": 5, "failed": 2}
    assert sorted(outcome.unreadable) == ["cut.png", "page.jpg"]
    assert outcome.ignored == ["notes.txt"]
    for name in MADE:
        with Image.open(covers / f"{name}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (60, 40))
            pixel = image.getpixel((30, 20))
            assert isinstance(pixel, tuple)
            red, green, blue = pixel
            assert red > 180, name
            assert green < 30, name
            assert blue < 30, name
    assert (covers / "lies.jpg").read_bytes() == before
    assert (covers / "alpha.png").exists()


def test_a_second_run_has_nothing_left_to_do(covers: Path) -> None:
    convert_folder(covers, Options(), workers=2)
    times = {path.name: path.stat().st_mtime_ns for path in covers.iterdir()}
    again = convert_folder(covers, Options(), workers=2)
    assert again.ways == {"kept": len(MADE), "copied": 0, "converted": 0, "failed": 2}
    assert {path.name: path.stat().st_mtime_ns for path in covers.iterdir()} == times


def test_originals_go_only_where_a_jpg_stands_for_them(covers: Path) -> None:
    convert_folder(covers, Options(remove_originals=True), workers=2)
    left = {path.name for path in covers.iterdir()}
    assert left == {f"{name}.jpg" for name in MADE} | {"cut.png", "page.jpg", "notes.txt"}


def test_a_bad_jpg_is_mended_from_another_file_of_its_name(covers: Path) -> None:
    Image.new("RGB", (5, 5)).save(covers / "page.png")
    outcome = convert_folder(covers, Options(), workers=2)
    assert outcome.ways["failed"] == 1
    assert "page.jpg" in outcome.unreadable
    with Image.open(covers / "page.jpg") as image:
        assert image.format == "JPEG"


def test_verify_finds_a_jpeg_that_was_cut_short(covers: Path) -> None:
    data = (covers / "jpeg.jpg").read_bytes()
    (covers / "jpeg.jpg").write_bytes(data[: len(data) // 2])
    assert "jpeg.jpg" not in convert_folder(covers, Options(), workers=2).unreadable
    assert "jpeg.jpg" in convert_folder(covers, Options(verify=True), workers=2).unreadable


def test_the_command_counts_lists_and_fails_for_what_it_could_not_read(
    covers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with raises_code("unreadable-image", DataError) as error:
        command(monkeypatch, "ocrvqa", covers)
    assert "2 images" in str(error.value)
    assert "cut.png" in str(error.value)
    assert "11 images: 1 were .jpg, 3 copied, 5 converted, 2 failed; 1 other" in capsys.readouterr().out
    report = json.loads((covers.parent / "images.report.json").read_text())
    assert sorted(report["unreadable"]) == ["cut.png", "page.jpg"]
    (covers / "cut.png").unlink()
    (covers / "page.jpg").unlink()
    command(monkeypatch, "ocrvqa", covers, "--verify", "--workers", "1")
    assert "9 images: 9 were .jpg" in capsys.readouterr().out
    (covers / os.fsdecode(b"\xff.png")).write_text("neither an image nor UTF-8 in its name")
    with raises_code("unreadable-image", DataError):
        command(monkeypatch, "ocrvqa", covers)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with raises_code("no-images", DataError):
        convert_folder(tmp_path, Options(), workers=1)
    with raises_code("missing-folder", DataError):
        convert_folder(tmp_path / "nowhere", Options(), workers=1)
