"""Whether every image that a training file names is there and decodes; opened once as long as it stays as is.

What was found is kept in the index's folder by name, size and time of change, so that a second look costs one
`stat` an image.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.checks.parallel import Piece, in_pieces
from llava.data.tables import read_table, write_table
from llava.errors import DataError
from llava.images import BROKEN, read_image

MISSING, UNREADABLE = "image missing", "image cannot be read"

_OPENED, _ASKED = 64, 1024  # images in a piece of work
_THREADS = 16  # More than cores: a network disk answers many at once.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),  # bytes; -1 for a missing file
        ("time", pa.int64()),  # of the last change, ns
        ("format", pa.string()),  # what the file is, whatever its suffix says
        ("problem", pa.string()),  # null for an image that decodes
    ]
)


def check_images(folder: Path, root: Path, names: pa.StringArray, *, workers: int) -> pa.Table:
    """Open every image that was not opened before as it is now.

    Args:
        folder: Where it is kept for the next time; a run that is broken off keeps what it has done.
        root: The image folder.
        names: Different paths under it.
        workers: Processes that open images.

    Returns:
        A row for each name: name, size, time, format and problem as above.
    """
    kept = folder / f"images-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.arrow"
    known = read_table(kept, _SCHEMA)
    known = _SCHEMA.empty_table() if known is None else known
    states = stat_images(root, names)
    rows = pc.index_in(names, known["name"].combine_chunks()).fill_null(-1).to_numpy(zero_copy_only=False)
    before = np.stack([known["size"].to_numpy(), known["time"].to_numpy()], axis=1)
    done = rows >= 0
    done[done] = (before[rows[done]] == states[done]).all(axis=1)

    found: dict[str, np.ndarray] = {}
    for column in ("format", "problem"):
        found[column] = np.full(len(names), None, dtype=object)
        found[column][done] = known[column].take(pa.array(rows[done])).to_pylist()
    new = np.flatnonzero(~done)
    asked = names.take(pa.array(new))

    def look(piece: Piece) -> list[tuple[str | None, str | None]]:
        return [_look(root / name) for name in asked[slice(*piece)].to_pylist()]

    try:
        for results in in_pieces(look, len(new), size=_OPENED, name="images", workers=workers):
            places, new = new[: len(results)], new[len(results) :]
            found["format"][places], found["problem"][places] = zip(*results, strict=True)
            done[places] = True
    finally:
        columns = [names, *map(pa.array, states.T), *(pa.array(each, pa.string()) for each in found.values())]
        table = pa.table(columns, schema=_SCHEMA)
        if not done.all() or len(asked):
            others = known.filter(pc.invert(pc.is_in(known["name"], names)))
            write_table(kept, pa.concat_tables([others, table.filter(pa.array(done))]))
    return table


def stat_images(root: Path, names: pa.StringArray) -> np.ndarray:
    """(N, 2) int64: size in bytes, -1 for a missing file, and time of the last change in ns."""

    def ask(start: int) -> list[tuple[int, int]]:
        # Of a million names, making each a Path takes longer than asking for it.
        return [_state(os.path.join(root, name)) for name in names[start : start + _ASKED].to_pylist()]  # noqa: PTH118

    with ThreadPoolExecutor(_THREADS) as pool:
        states = [state for part in pool.map(ask, range(0, len(names), _ASKED)) for state in part]
    return np.array(states, dtype=np.int64).reshape(-1, 2)


def elsewhere(root: Path, name: str) -> str | None:
    """The one image file whose name differs from `name` in nothing but an image format's suffix."""
    suffixes = [each for suffix in _SUFFIXES for each in (suffix, suffix.upper())]
    others = (Path(name).with_suffix(suffix) for suffix in suffixes)
    found = [other for other in others if (root / other).is_file()]
    return found[0].as_posix() if len(found) == 1 else None


def lying(table: pa.Table) -> list[str]:
    """The names of those images whose suffix is that of another format than the file's; they decode well."""
    Image.init()
    formats = Image.registered_extensions()
    return [
        name
        for name, found in zip(table["name"].to_pylist(), table["format"].to_pylist(), strict=True)
        # A camera's several pictures in one JPEG file are a format of their own to Pillow.
        if found not in (None, "MPO") and formats.get(Path(name).suffix.lower(), found) != found
    ]


def _state(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _look(path: Path) -> tuple[str | None, str | None]:
    try:
        read_image(path)
        with Image.open(path) as image:
            return image.format, None
    except (DataError, *BROKEN) as error:
        return None, str(error).removeprefix(f"{path}: ")
