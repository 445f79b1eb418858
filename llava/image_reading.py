"""Name, find and decode image files; no other module opens one.

Whatever is wrong with an image is a `DataError`, so that every caller can treat it as a bad image. Pillow is
imported only when an image is opened.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import DataError, one_line, shown

if TYPE_CHECKING:
    from PIL.Image import Image

# The formats of photos and of figures. Pillow reads these itself; for others it starts programs (Ghostscript
# for EPS), asks the system (WMF) or uses decoders that few images ever tested. A JPEG may hold several (MPO).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

# Where Pillow refuses a file as a decompression bomb. The same holds for the square that padding makes.
MAX_PIXELS = 178_956_970
# Where the shorter side is resized to 336, the longer side becomes at most 336,000: 113 million pixels.
MAX_RATIO = 1000

_OUTSIDE = re.compile(r"[/\\]|[A-Za-z]:|[A-Za-z][\w+.-]*://")  # absolute, a drive, an address


def image_path(folder: Path, name: object, where: str) -> Path:
    """Return the path of the image that a record or question names under an image folder.

    Args:
        folder: The image folder.
        name: What the record says.
        where: File and record, for the message.

    Raises:
        DataError: It is no path, or it leaves the folder.
    """
    if problem := find_name_problem(name):
        raise DataError(f"{where}: image is {shown(name)}, {problem}", code="bad-image-name")
    return folder / str(name)


def find_name_problem(name: object) -> str | None:
    """Return what is wrong with an image's name in a record; None for a path that stays in the image folder.

    Only the name counts, as Linux or Windows would read it: links inside the folder are the user's own.
    """
    if not isinstance(name, str) or not name.strip():
        return "wanted a path under the image folder"
    if re.search("[\0\ud800-\udfff]", name):
        return "which no file can be called"
    if _OUTSIDE.match(name) or not _stays_under(name):
        return "wanted a path under the image folder; to use others, give the folder that holds them all"
    return None


def _stays_under(name: str) -> bool:
    """Return whether a relative path never leaves the folder, and names something in it."""
    depth = 0
    for part in re.split(r"[/\\]", name):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return False
    return depth > 0


def has_image(folder: Path, name: str) -> bool:
    """Return whether an image folder holds a file of this name; never raises."""
    return os.path.isfile(folder / name)  # noqa: PTH113 - Path.is_file raises for a name that is too long


def list_image_files(folder: Path) -> list[str]:
    """Return the paths of the images in a folder and its sub-folders, relative to it, with "/", sorted.

    An image is a file with an image's suffix, or one without any suffix (as SEED-Bench's) that is an image.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images", code="missing-folder")
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        for path in (Path(place, name) for name in files):
            if path.suffix.lower() in SUFFIXES or (not path.suffix and _is_image(path)):
                found.append(path.relative_to(folder).as_posix())
    if not found:
        raise DataError(f"{folder}: no image; wanted {', '.join(sorted(SUFFIXES))}", code="no-images")
    return sorted(found)


def _is_image(path: Path) -> bool:
    with suppress(DataError), open_image(path):
        return True
    return False


def require_image_file(path: Path) -> None:
    """Check that there is a file, without opening it: reading a named pipe would wait forever.

    Raises:
        DataError: There is no such file, or it may not be looked at.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_file = False
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from error
    if not is_file:
        raise DataError(f"{path}: no such image file", code="missing-image")


@contextmanager
def open_image(source: Path | bytes, *, name: str | None = None) -> Iterator[Image]:
    """Open an image for a `with` block, without decoding it.

    Decoding happens in the block, so any exception there becomes a DataError about this image. Keep other
    code out of the block.

    Args:
        source: A file or its content.
        name: What to call it in messages, by default its path or size.

    Raises:
        DataError: The file is missing or not an image, its size is refused, or the block failed.
    """
    from PIL import Image

    if name is None:
        name = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
    try:
        if isinstance(source, Path):
            require_image_file(source)
        Image.init()
        # A Pillow built without a library lacks its format.
        formats = [name for name in FORMATS if name in Image.OPEN]
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats) as image:
            require_size(image.size, name)
            yield image
    except DataError:
        raise
    except Exception as error:  # Decoders raise nearly everything, for a declared size also MemoryError.
        raise _unreadable(name, error) from error


def require_size(size: tuple[int, int], name: str) -> None:
    """Check that neither an image nor what padding or resizing makes of it takes gigabytes.

    Raises:
        DataError: Its longer side is too long, or too long for its shorter side.
    """
    short, long = sorted(size)
    if short < 1 or long * long > MAX_PIXELS or long > MAX_RATIO * short:
        raise DataError(
            f"{name}: has {size[0]} x {size[1]} pixels; wanted at most {math.isqrt(MAX_PIXELS):,} a side, and"
            f" one side at most {MAX_RATIO:,} times the other: scale it down or cut it",
            code="image-size",
        )


def read_image(path: Path) -> Image:
    """Return the image in `path`, fully decoded, as RGB (alpha dropped, first frame only).

    Raises:
        DataError: The file is missing, is no image, is truncated, or its size is refused.
    """
    with open_image(path) as image:
        return to_rgb(image)


def load_image_from_base64(image: str | bytes) -> Image:
    """Decode an image file given in base64; keeps the mode it was stored in.

    Raises:
        DataError: The text is not base64 or holds no complete image.
    """
    name = f"base64 text of {len(image)} characters"
    try:
        content = base64.b64decode(image)
    except ValueError as error:
        raise _unreadable(name, error) from error
    with open_image(content, name=name) as decoded:
        decoded.load()
        return decoded


def to_rgb(image: Image) -> Image:
    """Decode `image` as RGB. 16-bit grey keeps its upper eight bits, where Pillow would clip it."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        grey = image.convert("I")
        highest = grey.getextrema()[1]
        if isinstance(highest, int) and highest > 255:
            grey = grey.point(lambda value: value * (1 / 256))
        return grey.convert("L").convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns unless RGBA comes in between; the colours are the same.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> DataError:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own text repeats the path
        reason = f"its content is none of {', '.join(FORMATS)}"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = one_line(error, 200)
    return DataError(
        f"{name}: cannot be read as an image ({reason}); replace the file", code="unreadable-image"
    )
