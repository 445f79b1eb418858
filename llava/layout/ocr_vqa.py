"""OCR-VQA's images as the training files name them: every one a real JPEG called `.jpg`.

The download has GIF, PNG and other files, some under a name that lies. What is JPEG inside is kept byte for
byte; the rest is decoded (a GIF's first frame) and written as RGB JPEG. Each image appears in one step, so an
interrupted run is taken up by starting it again.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from llava.errors import DataError
from llava.files import atomic_write
from llava.image_reading import read_image
from llava.log import progress

SUFFIXES = frozenset({".jpg", ".jpeg", ".gif", ".png", ".webp", ".bmp", ".tif", ".tiff", ""})
JPEG_QUALITY = 95
_JPEG_START = b"\xff\xd8\xff"

Way = Literal["kept", "copied", "converted", "failed"]


@dataclass(frozen=True, slots=True)
class Options:
    """`verify`: also decode files that are JPEG. `remove_originals`: delete files replaced by a `.jpg`."""

    verify: bool = False
    remove_originals: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of images by how they were made, unreadable files with reasons, and other files."""

    ways: dict[Way, int]
    unreadable: dict[str, str]
    ignored: list[str]


def convert_folder(folder: Path, options: Options, *, workers: int) -> Outcome:
    """Make every image in `folder` a `.jpg`; several files of one name (1.gif, 1.png) make one image.

    JPEG data is kept or copied byte for byte, other formats are converted. Originals stay unless
    `options.remove_originals`. Images that cannot be read are counted and named in the outcome, not raised.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", code="missing-folder")
    outcome = Outcome({"kept": 0, "copied": 0, "converted": 0, "failed": 0}, {}, [])
    sources: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file()):
        if path.suffix.lower() in SUFFIXES:
            sources[path.with_suffix(".jpg")].append(path)
        else:
            outcome.ignored.append(path.name)
    if not sources:
        raise DataError(
            f"{folder}: no images in it; wanted OCR-VQA's downloads (.jpg, .gif, .png, ...)", code="no-images"
        )
    # Pillow decodes and encodes without holding the interpreter, so threads use all cores.
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(partial(_make, options=options), sources, sources.values())
        for way, unreadable in progress(results, name="images", total=len(sources)):
            outcome.ways[way] += 1
            outcome.unreadable.update(unreadable)
    return outcome


def _make(target: Path, sources: list[Path], options: Options) -> tuple[Way, dict[str, str]]:
    """Make `target` from the first of its sources that can be read, starting with itself."""
    unreadable: dict[str, str] = {}
    for source in sorted(sources, key=lambda path: (path != target, path.name)):
        try:
            way = _make_from(source, target, verify=options.verify)
        except DataError as error:
            unreadable[source.name] = str(error)
            continue
        if options.remove_originals:
            for original in sources:
                if original != target:
                    original.unlink()
        return way, unreadable
    return "failed", unreadable


def _make_from(source: Path, target: Path, *, verify: bool) -> Way:
    is_jpeg = _starts_as_jpeg(source)
    if is_jpeg and source == target and not verify:
        return "kept"
    image = read_image(source)
    if is_jpeg and source == target:
        return "kept"
    with atomic_write(target, binary=True) as stream:
        if is_jpeg:
            stream.write(source.read_bytes())
        else:
            image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return "copied" if is_jpeg else "converted"


def _starts_as_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_JPEG_START)) == _JPEG_START
    except OSError:
        return False  # reading it as an image says why
