"""A training file as a memory-mapped Arrow table: read and checked once, then shared by ranks and workers.

`train.json.index/` lies beside `train.json` (where that folder cannot be written, or `LLAVA_CACHE` names
another, under a cache folder). It holds `samples.arrow`, a row for each record, good or bad, and `stamp.json`
with size and time of both files. An index that is stale, cut short or changed is made anew. It can be deleted
at any time.

What a policy leaves out, a held-out part takes away or a template cannot hold is a choice of rows: see
`Samples`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from llava.conversation import SeparatorStyle, conv_templates
from llava.data.checks.repair import mend
from llava.errors import DataError
from llava.files import atomic_write, read_json, write_json
from llava.log import progress_bar
from llava.prompts.labels import CHOOSY, require_fit
from llava.samples import (
    RecordError,
    group_lengths,
    names_image_in_vain,
    parse_sample,
    place_name,
    read_records,
)
from llava.schema import Sample, Speaker, Turn

logger = logging.getLogger(__name__)

FORMAT = 2
SAMPLES, STAMP, LOCK = "samples.arrow", "stamp.json", "lock"
CACHE_VARIABLE = "LLAVA_CACHE"

# Rows written at a time: some MB, so that a file of any size is indexed in little memory.
_BATCH = 4096

# For each style that cannot hold every sample: its column, and one of its templates.
_CHOOSY_COLUMNS = {style: f"fits {style.name.lower()}" for style in CHOOSY}
_CHOOSY_TEMPLATES = {
    style: next(each for each in conv_templates.values() if each.sep_style is style) for style in CHOOSY
}
_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),  # record number, in .jsonl the line
        ("id", pa.string()),  # JSON: "7" and 7 are two ids; null where the record has none
        ("image", pa.string()),
        ("type", pa.string()),
        ("gpt first", pa.bool_()),
        (
            "texts",
            pa.list_(pa.string()),
        ),  # of the turns, whose speakers alternate; null if they cannot be read
        ("length", pa.int32()),
        ("modality length", pa.int32()),
        ("image in vain", pa.bool_()),
        ("mended", pa.list_(pa.string())),  # what a repair would mend of it
        ("kind", pa.string()),  # of what is wrong with the record, null for a good one
        ("problem", pa.string()),  # the same in detail, behind the place
        *((name, pa.bool_()) for name in _CHOOSY_COLUMNS.values()),
    ]
)


class SampleIndex(Sequence[Sample]):
    """The records of one training file, by row; a sample is decoded when asked for.

    Pickled as its two paths, so that a spawned process maps the same file.

    Attributes:
        data_path: The training file.
        folder: The index's own, in which others may keep what they derive from the file.
    """

    def __init__(self, data_path: Path, folder: Path) -> None:
        """Map the index in `folder`; raises pyarrow's errors if it is damaged."""
        self.data_path = data_path
        self.folder = folder
        with pa.memory_map(str(folder / SAMPLES)) as source:
            self.table: pa.Table = pa.ipc.open_file(source).read_all()
        if self.table.schema != _SCHEMA:
            raise pa.ArrowInvalid(f"{folder}: columns of another version")

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleIndex, (self.data_path, self.folder)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: Any) -> Any:
        """The sample of a row.

        Raises:
            DataError: The record is so bad that there is none; the message says what is wrong with it.
        """
        texts = self._value("texts", row)
        if texts is None:
            raise DataError(self.problem(row))
        speakers: tuple[Speaker, Speaker] = ("human", "gpt")
        opening = int(self._value("gpt first", row))
        turns = tuple(Turn(speakers[place % 2], text) for place, text in enumerate(texts, start=opening))
        return Sample(self.identifier(row), turns, self._value("image", row), self._value("type", row))

    def identifier(self, row: int) -> str | int:
        """The record's id, or its place if it has none."""
        stored = self._value("id", row)
        return place_name(self.data_path, self._value("place", row)) if stored is None else json.loads(stored)

    def where(self, row: int) -> str:
        """File, place and id of a row's record, to open a message with."""
        stored = self._value("id", row)
        place = place_name(self.data_path, self._value("place", row))
        return place if stored is None else f"{place} (id {json.loads(stored)!r})"

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words of each row's sample, an image counted as 128; int32."""
        return self._numbers("length")

    @cached_property
    def modality_lengths(self) -> np.ndarray:
        """Words of each row's sample, at least one, negative for text alone; int32."""
        return self._numbers("modality length")

    @cached_property
    def with_image(self) -> np.ndarray:
        """Whether each row names an image."""
        return self.mask(pc.is_valid(self.table["image"]))

    @cached_property
    def image_in_vain(self) -> np.ndarray:
        """Whether each row's sample is of text alone and holds the image token, which is plain text there."""
        return self.mask(self.table["image in vain"])

    @cached_property
    def bad_rows(self) -> np.ndarray:
        """The rows of records that are not as they must be, whatever the template."""
        return np.flatnonzero(self.mask(pc.is_valid(self.table["kind"])))

    def kind(self, row: int) -> str:
        """What is wrong with a bad row's record, in fixed words."""
        return str(self._value("kind", row))

    def problem(self, row: int) -> str:
        """What is wrong with a bad row's record, in a sentence that opens with its place."""
        return place_name(self.data_path, self._value("place", row)) + str(self._value("problem", row))

    @cached_property
    def mendable_rows(self) -> np.ndarray:
        """The rows of records, good or bad, in which a repair would mend something."""
        return np.flatnonzero(self.mask(pc.is_valid(self.table["mended"])))

    def mended(self, row: int) -> list[str]:
        """What a repair would mend in a row's record, in fixed words."""
        return self._value("mended", row) or []

    def unfit_rows(self, style: SeparatorStyle) -> np.ndarray:
        """The rows of good records that templates of a style cannot hold."""
        column = _CHOOSY_COLUMNS.get(style)
        if column is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.mask(pc.invert(self.table[column])))

    def images(self, rows: np.ndarray) -> pa.DictionaryArray:
        """The image names of some rows, each different name held once; null for text alone."""
        return self.table["image"].take(pa.array(rows)).combine_chunks().dictionary_encode()

    @staticmethod
    def mask(column: pa.ChunkedArray) -> np.ndarray:
        """A column of truth values; null is False."""
        return np.asarray(column.fill_null(False).to_numpy(), dtype=bool)

    def _numbers(self, column: str) -> np.ndarray:
        return np.asarray(self.table[column].to_numpy())

    def _value(self, column: str, row: int) -> Any:
        return self.table[column][int(row)].as_py()


class Samples(Sequence[Sample]):
    """Some rows of an index in order, each decoded when asked for, and mended if so wished.

    Attributes:
        rows: Row numbers, one for each sample.
        is_mended: Whether what can be mended in a sample is.
        images: Other names for images of these names.
    """

    def __init__(
        self,
        index: SampleIndex,
        rows: np.ndarray,
        *,
        mended: bool = False,
        images: Mapping[str, str] | None = None,
    ) -> None:
        self._index = index
        self.is_mended = mended
        self.rows = rows
        self.images = images or {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        sample = self._index[self.rows[place]]
        if self.is_mended:
            sample, _ = mend(sample)
        return replace(sample, image=self.images[sample.image]) if sample.image in self.images else sample

    def at(self, rows: np.ndarray, images: Mapping[str, str] | None = None) -> Samples:
        """The samples of other rows, treated likewise."""
        images = self.images if images is None else images
        return Samples(self._index, rows, mended=self.is_mended, images=images)


def open_index(data_path: Path) -> SampleIndex:
    """The index of a training file, made first if there is none that fits it; other processes wait for it.

    Bad records are in the index, too: whether they stop a run is for a policy to say.

    Raises:
        DataError: The file is missing, is not JSON, or changes while it is read.
    """
    if not data_path.is_file():
        raise DataError(f"{data_path}: no such file")
    for folder in _folders(data_path):
        if (index := _current(data_path, folder)) is not None:
            return index
    folder = _writable_folder(data_path)
    with waiting(folder / LOCK, f"{data_path}: another process is reading it"):
        index = _current(data_path, folder)
        if index is None:
            _build(data_path, folder)
            index = _current(data_path, folder)
    if index is None:
        raise DataError(f"{data_path}: changed while it was read; start again when it is written")
    return index


@contextmanager
def waiting(path: Path, why: str) -> Iterator[None]:
    """Hold the lock of a file for the length of the block; `why` is said if another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for it", why)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _folders(data_path: Path) -> Iterator[Path]:
    """Where the index may lie, in order of choice."""
    if CACHE_VARIABLE not in os.environ:
        yield data_path.with_name(f"{data_path.name}.index")
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llava"
    path = str(data_path.resolve())
    yield Path(root) / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{data_path.name}.index"


def _writable_folder(data_path: Path) -> Path:
    for folder in _folders(data_path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.debug("%s: %s", folder, error.strerror)
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DataError(f"{data_path}: its index can be written nowhere; let {CACHE_VARIABLE} name a folder")


def _current(data_path: Path, folder: Path) -> SampleIndex | None:
    """The index in a folder, unless there is none, it is of another state of the file, or it was touched."""
    try:
        if read_json(folder / STAMP) != _stamp(data_path, folder):
            return None
        return SampleIndex(data_path, folder)
    except (DataError, OSError, pa.ArrowException):
        return None


def _stamp(data_path: Path, folder: Path) -> dict[str, Any]:
    return {"format": FORMAT, "file": _state(data_path), "index": _state(folder / SAMPLES)}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _build(data_path: Path, folder: Path) -> None:
    before = _state(data_path)
    for derived in folder.glob("lengths-*"):
        derived.unlink()
    with (
        progress_bar(name=f"indexing {data_path.name}", total=before[0], unit="B") as bar,
        atomic_write(folder / SAMPLES, binary=True) as stream,
        pa.ipc.new_file(stream, _SCHEMA) as writer,
    ):
        columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        for place, record in read_records(data_path, bar.update):
            for name, value in _row(place, record).items():
                columns[name].append(value)
            if len(columns["place"]) == _BATCH:
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                columns = {name: [] for name in _SCHEMA.names}
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
    write_json(folder / STAMP, _stamp(data_path, folder) | {"file": before})


def _row(place: int, record: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_SCHEMA.names)
    row["place"] = place
    sample: Sample | None
    try:
        sample = parse_sample(record, "")
    except RecordError as error:
        sample = error.sample
        row |= {"kind": error.kind, "problem": str(error)}
    if sample is not None:
        row["id"] = None if record.get("id") is None else json.dumps(sample.id)
        row["image"], row["type"] = sample.image, sample.type
        row["gpt first"] = sample.turns[0].speaker == "gpt"
        row["texts"] = [turn.text for turn in sample.turns]
        row["length"], row["modality length"] = group_lengths(sample)
        row["image in vain"] = names_image_in_vain(sample)
        row["mended"] = mend(sample)[1] or None
    if row["kind"] is None and sample is not None:
        row |= {column: _fits(sample, style) for style, column in _CHOOSY_COLUMNS.items()}
    return row


def _fits(sample: Sample, style: SeparatorStyle) -> bool:
    try:
        require_fit(sample, _CHOOSY_TEMPLATES[style])
    except DataError:
        return False
    return True
