"""Write base data, unchanged and in order, and then new samples into one training file.

The base is streamed, so a file of several GB needs little memory. Ids and image paths that clash are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from pathlib import Path, PurePosixPath
from typing import IO

from llava.data_engine.records import read_rows
from llava.data_engine.sampling import draw_evenly, stratum_of
from llava.data_engine.text import digest
from llava.errors import DataError, SettingsError
from llava.files import atomic_write, require_distinct
from llava.image_reading import has_image
from llava.log import progress
from llava.samples import sample_to_row
from llava.schema import JsonObject, Sample

BATCH_SIZE = 128
BASE_SOURCE = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K (llava_v1_5_mix665k.json)"


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was written: `base` of the base's `of` records, then `added` samples; and the file's digest."""

    base: int
    added: int
    sha256: str
    of: int = 0

    @property
    def total(self) -> int:
        """Return the number of records in the file."""
        return self.base + self.added

    @property
    def steps(self) -> int:
        """Return the optimizer steps of one epoch at a global batch size of `BATCH_SIZE`."""
        return -(-self.total // BATCH_SIZE)


@dataclass(frozen=True, slots=True)
class Replay:
    """A part of the base instead of all of it: `ratio` of its records for each new sample, drawn by seed.

    With `by_type`, each question type (or first image folder, where a record has no type) keeps its share.
    """

    ratio: float
    by_type: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < inf:
            raise SettingsError(f"replay is {self.ratio}; wanted a number, at least 0", code="out-of-range")

    def choose(self, base: Path, count: int) -> frozenset[int]:
        """Return which records of the base, by number from 0, come before `count` new samples."""
        strata = [stratum_of(row) if self.by_type else "" for row in _base_rows(base)]
        return draw_evenly(strata, round(self.ratio * count), self.seed)


def write_samples(
    output: Path,
    samples: Iterable[Sample],
    *,
    base: Path | None = None,
    keep: frozenset[int] | None = None,
    image_root: Path | None = None,
) -> Mixed:
    """Write `base`'s records, then `samples`, as one JSON array with one record per line.

    If `keep` is given, only the base records with these numbers (from 0) are written. An image that exists
    under `image_root` never counts as named from another folder. New ids are compared with the base's, not
    with one another: see `each_id_once`.

    Raises:
        DataError: The base is missing, is no training file or has a new id, or image folders do not fit.
        SettingsError: The output is the base itself.
    """
    if base is not None:
        require_base(base)
        require_distinct((output,), (base,))
    clashes = _Clashes(base, image_root)
    checksum = sha256()
    counts, passed = [0, 0], 0
    with atomic_write(output, binary=True) as stream:
        writer = _ArrayWriter(stream, checksum.update)
        for row in () if base is None else progress(_base_rows(base), name="base records"):
            clashes.learn(row)
            if keep is None or passed in keep:
                writer.write(row)
                counts[0] += 1
            passed += 1
        for sample in progress(samples, name="new samples"):
            clashes.refuse(sample)
            writer.write(sample_to_row(sample))
            counts[1] += 1
        writer.close()
    return Mixed(counts[0], counts[1], checksum.hexdigest(), passed)


def each_id_once(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples and check that each id comes once. Samples of one conversion need no such check.

    Raises:
        DataError: An id comes twice.
    """
    seen: set[int] = set()
    for sample in samples:
        if digest(str(sample.id)) in seen:
            raise DataError(
                f"id {sample.id!r} comes twice in the samples; convert all engine files together",
                code="repeated-id",
            )
        seen.add(digest(str(sample.id)))
        yield sample


def require_base(base: Path) -> None:
    """Raise an error that says where to get the base, unless it is there."""
    if not base.is_file():
        raise DataError(f"{base}: no such file; download it from {BASE_SOURCE}", code="missing-file")


def _base_rows(base: Path) -> Iterator[JsonObject]:
    for index, row in read_rows(base):
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            raise DataError(
                f"{base}: record {index} has no list of conversations; wanted a LLaVA training file",
                code="not-training-data",
            )
        yield row


class _ArrayWriter:
    """Writes a compact JSON array, one record per line, and passes each piece to `observe`."""

    def __init__(self, stream: IO[bytes], observe: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._observe = observe
        self._before = "[\n"

    def write(self, row: JsonObject) -> None:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        try:
            data = text.encode()
        except UnicodeEncodeError:
            # Half a surrogate pair is not valid UTF-8, so the record is written with JSON escapes.
            data = json.dumps(row, separators=(",", ":")).encode()
        self._put(self._before.encode() + data)
        self._before = ",\n"

    def close(self) -> None:
        self._put(b"\n]\n" if self._before == ",\n" else b"[]\n")

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._observe(data)


class _Clashes:
    """The ids and image folders of the base."""

    def __init__(self, base: Path | None, image_root: Path | None) -> None:
        self._base = base
        self._image_root = image_root
        self._ids: set[int] = set()
        self._folders: set[str] = set()
        self._fitting: set[str] = set()

    def learn(self, row: JsonObject) -> None:
        """Note a record of the base. The published base repeats some of its own ids, which is allowed."""
        if "id" in row:
            self._ids.add(digest(str(row["id"])))
        if isinstance(image := row.get("image"), str):
            self._folders.add(_folder(image))

    def refuse(self, sample: Sample) -> None:
        """Check a new sample.

        Raises:
            DataError: Its id is taken, or its image is named from another root folder than the base's: with
                coco/train2017/1.jpg in the base, train2017/2.jpg cannot lie under the same image folder.
        """
        if digest(str(sample.id)) in self._ids:
            raise DataError(
                f"id {sample.id!r} comes twice; has {self._base} been mixed before? Give the base as it was"
                " downloaded, and all engine files together",
                code="repeated-id",
            )
        if sample.image is None or (folder := _folder(sample.image)) in self._fitting:
            return
        other = next((name for name in self._folders if _one_ends_in_the_other(folder, name)), None)
        is_there = self._image_root is not None and has_image(self._image_root, sample.image)
        if other is not None and not is_there:
            raise DataError(
                f"sample {sample.id!r} has its image in {folder}/, but {self._base} calls that folder"
                f" {other}/: both must be paths under one image folder (if they are, name it: --image-root)",
                code="image-folders-differ",
            )
        self._fitting.add(folder)


def _folder(image: str) -> str:
    return str(PurePosixPath(image).parent)


def _one_ends_in_the_other(first: str, second: str) -> bool:
    longer, shorter = sorted((f"/{first}", f"/{second}"), key=len, reverse=True)
    return longer != shorter and longer.endswith(shorter)
