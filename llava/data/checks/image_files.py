"""Check that every image of a training file exists and decodes.

Results are cached in the index's folder by name, size and time of change, so that a second check costs one
`stat` per image.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.checks.parallel import Range, map_ranges
from llava.data.tables import read_table, write_table
from llava.errors import DataError
from llava.image_reading import FORMATS, MAX_PIXELS, MAX_RATIO, has_image, open_image, to_rgb

MISSING, UNREADABLE = "image missing", "image cannot be read"

_OPEN_BATCH, _STAT_BATCH = 64, 1024  # images a worker takes at a time
_THREADS = 16  # more than cores: a network disk answers many requests at once
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),  # bytes; -1 for a missing file
        ("time", pa.int64()),  # of the last change, ns
        ("format", pa.string()),  # the format of the content, whatever the suffix
        ("problem", pa.string()),  # null for an image that decodes
    ]
)


def check_images(folder: Path, root: Path, names: pa.StringArray, *, workers: int) -> pa.Table:
    """Open every image that is new or changed since the last check.

    Args:
        folder: Where results are cached; an interrupted check keeps those it has.
        root: The image folder.
        names: Distinct paths under it.
        workers: Number of processes that open images.

    Returns:
        A row for each name: name, size, time, format and problem.
    """
    # Another version may read other images.
    rules = json.dumps([str(root.resolve()), FORMATS, MAX_PIXELS, MAX_RATIO])
    cache = folder / f"images-{hashlib.sha256(rules.encode()).hexdigest()[:16]}.arrow"
    known = read_table(cache, _SCHEMA)
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
    new_names = names.take(pa.array(new))

    def inspect(items: Range) -> list[tuple[str | None, str | None]]:
        return [_inspect(root / name) for name in new_names[slice(*items)].to_pylist()]

    try:
        for results in map_ranges(inspect, len(new), size=_OPEN_BATCH, name="images", workers=workers):
            checked, new = new[: len(results)], new[len(results) :]
            found["format"][checked], found["problem"][checked] = zip(*results, strict=True)
            done[checked] = True
    finally:
        columns = [
            names,
            *map(pa.array, states.T),
            *(pa.array(column, pa.string()) for column in found.values()),
        ]
        table = pa.table(columns, schema=_SCHEMA)
        if not done.all() or len(new_names):
            others = known.filter(pc.invert(pc.is_in(known["name"], names)))
            write_table(cache, pa.concat_tables([others, table.filter(pa.array(done))]))
    return table


def stat_images(root: Path, names: pa.StringArray) -> np.ndarray:
    """Return (N, 2) int64: size in bytes, -1 where there is no file, and time of the last change in ns."""

    def stat_batch(start: int) -> list[tuple[int, int]]:
        # Creating a Path for each of a million names takes longer than the stat calls.
        batch = names[start : start + _STAT_BATCH].to_pylist()
        return [_stat(os.path.join(root, name)) for name in batch]  # noqa: PTH118

    with ThreadPoolExecutor(_THREADS) as pool:
        starts = range(0, len(names), _STAT_BATCH)
        states = [state for batch in pool.map(stat_batch, starts) for state in batch]
    return np.array(states, dtype=np.int64).reshape(-1, 2)


def find_other_suffix(root: Path, name: str) -> str | None:
    """Return the image file that differs from `name` in its suffix only; None unless there is exactly one."""
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - with_suffix raises for a name that is only dots
    others = [stem + variant for suffix in _SUFFIXES for variant in (suffix, suffix.upper())]
    found = [other for other in others if has_image(root, other)]
    return found[0] if len(found) == 1 else None


def mislabelled_images(table: pa.Table) -> list[str]:
    """Return the images whose suffix is that of another format than their content; they decode correctly."""
    Image.init()
    formats = Image.registered_extensions()
    return [
        name
        for name, found in zip(table["name"].to_pylist(), table["format"].to_pylist(), strict=True)
        # MPO is Pillow's name for a JPEG file with several pictures.
        if found not in (None, "MPO") and formats.get(Path(name).suffix.lower(), found) != found
    ]


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return -1, 0
    if not stat.S_ISREG(status.st_mode):  # a folder or a named pipe is no image
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _inspect(path: Path) -> tuple[str | None, str | None]:
    """Return format and problem of an image; one of them is None."""
    try:
        with open_image(path) as image:
            to_rgb(image)
            return image.format, None
    except DataError as error:
        return None, str(error).removeprefix(f"{path}: ")
