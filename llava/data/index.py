"""A training file as a memory-mapped Arrow table, read and checked once and shared by ranks and workers.

`train.json.index/` is beside `train.json`, or in a cache folder if that place cannot be written or
`LLAVA_CACHE` names another. It holds `samples.arrow`, with one row for each record, good or bad, and
`stamp.json`, with size and time of both files. An index that is stale or damaged is rebuilt. It can be
deleted at any time.

`SampleIndex` reads the table. `Samples` is a selection of its rows: a policy, a held-out split and a template
each select rows. `open_index` builds the table when needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from torch.utils.data import Dataset

from llava.conversation import SeparatorStyle, conv_templates
from llava.data.checks.repair import repair_sample
from llava.errors import DataError
from llava.files import CACHE_VARIABLE, atomic_write, cache_folder, read_json, write_json
from llava.log import progress_bar
from llava.prompts.labels import CHOOSY, require_supervisable
from llava.samples import (
    RecordError,
    group_lengths,
    has_unused_image_token,
    parse_sample,
    read_records,
    record_location,
)
from llava.schema import Sample, Speaker, Turn

logger = logging.getLogger(__name__)

FORMAT = 3
SAMPLES, STAMP, LOCK = "samples.arrow", "stamp.json", "lock"

# Rows and text written at a time: a file of any size is indexed in little memory, and no batch comes near
# Arrow's limit of 2 GB of text.
_BATCH, _BATCH_CHARACTERS = 4096, 1 << 27

# For each style that cannot hold every sample: its column, and a template of that style.
_CHOOSY_COLUMNS = {style: f"fits {style.name.lower()}" for style in CHOOSY}
_CHOOSY_TEMPLATES = {
    style: next(template for template in conv_templates.values() if template.sep_style is style)
    for style in CHOOSY
}
_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),  # record number; in .jsonl the line number
        ("id", pa.string()),  # JSON: "7" and 7 are two ids; null where the record has none
        ("image", pa.string()),
        ("type", pa.string()),
        ("gpt first", pa.bool_()),
        # The turns' texts; their speakers alternate. Null if the record cannot be read.
        ("texts", pa.list_(pa.string())),
        ("length", pa.int32()),
        ("modality length", pa.int32()),
        ("image in vain", pa.bool_()),
        ("mended", pa.list_(pa.string())),  # the kinds of repair that apply
        ("kind", pa.string()),  # kind of problem; null for a good record
        ("problem", pa.string()),  # the message, without the place it opens with
        *((name, pa.bool_()) for name in _CHOOSY_COLUMNS.values()),
    ]
)


class SampleIndex:
    """The records of one training file by row. A sample is decoded on access.

    Pickles as its two paths, so that a spawned process maps the same file.

    Attributes:
        data_path: The training file.
        folder: The folder of the index. Results derived from the file are cached there, too.
    """

    def __init__(self, data_path: Path, folder: Path) -> None:
        """Map the index in `folder`; raise an `ArrowException` if it is damaged."""
        self.data_path = data_path
        self.folder = folder
        with pa.memory_map(str(folder / SAMPLES)) as source:
            self.table: pa.Table = pa.ipc.open_file(source).read_all()
        if self.table.schema != _SCHEMA:
            raise pa.ArrowInvalid(f"{folder}: columns of another version")

    def __reduce__(self) -> tuple[type[SampleIndex], tuple[Path, Path]]:
        return SampleIndex, (self.data_path, self.folder)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> Sample:
        """Decode the sample of a row.

        Raises:
            DataError: The record could not be read as a sample; the message says why.
        """
        texts = self._value("texts", row)
        if texts is None:
            raise DataError(self.problem(row), code=problem_code(self.problem_kind(row)))
        speakers: tuple[Speaker, Speaker] = ("human", "gpt")
        first = int(self._value("gpt first", row))
        turns = tuple(Turn(speakers[number % 2], text) for number, text in enumerate(texts, start=first))
        return Sample(self.identifier(row), turns, self._value("image", row), self._value("type", row))

    def identifier(self, row: int) -> str | int:
        """Return the record's id, or its place in the file if it has none."""
        stored = self._value("id", row)
        return (
            record_location(self.data_path, self._value("place", row))
            if stored is None
            else json.loads(stored)
        )

    def location(self, row: int) -> str:
        """Return file, place and id of a row's record, to open a message with."""
        stored = self._value("id", row)
        place = record_location(self.data_path, self._value("place", row))
        return place if stored is None else f"{place} (id {json.loads(stored)!r})"

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words of each row's sample, an image counting as 128; int32."""
        return self._numbers("length")

    @cached_property
    def modality_lengths(self) -> np.ndarray:
        """Words of each row's sample, at least one, negative without an image; int32."""
        return self._numbers("modality length")

    @cached_property
    def with_image(self) -> np.ndarray:
        """Whether each row names an image."""
        return self.mask(pc.is_valid(self.table["image"]))

    @cached_property
    def unused_image_token(self) -> np.ndarray:
        """Whether each row's sample has no image but the image token, which is plain text there."""
        return self.mask(self.table["image in vain"])

    @cached_property
    def bad_rows(self) -> np.ndarray:
        """The rows of records that are invalid with any template."""
        return np.flatnonzero(self.mask(pc.is_valid(self.table["kind"])))

    def problem_kind(self, row: int) -> str:
        """Return the kind of problem of a bad row."""
        return str(self._value("kind", row))

    def problem(self, row: int) -> str:
        """Return what is wrong with a bad row; the message opens with the record's place."""
        return record_location(self.data_path, self._value("place", row)) + str(self._value("problem", row))

    @cached_property
    def repairable_rows(self) -> np.ndarray:
        """The rows of records, good or bad, to which a repair applies."""
        return np.flatnonzero(self.mask(pc.is_valid(self.table["mended"])))

    def repairs(self, row: int) -> list[str]:
        """Return the kinds of repair that apply to a row."""
        return self._value("mended", row) or []

    def unfit_rows(self, style: SeparatorStyle) -> np.ndarray:
        """Return the rows of good records that templates of a style cannot hold."""
        column = _CHOOSY_COLUMNS.get(style)
        if column is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.mask(pc.invert(self.table[column])))

    def images(self, rows: np.ndarray) -> pa.DictionaryArray:
        """Return the image names of some rows, dictionary-encoded; null without an image."""
        return self.table["image"].take(pa.array(rows)).combine_chunks().dictionary_encode()

    @staticmethod
    def mask(column: pa.ChunkedArray) -> np.ndarray:
        """Return a boolean column as an array, with null as False."""
        return np.asarray(column.fill_null(False).to_numpy(), dtype=bool)

    def _numbers(self, column: str) -> np.ndarray:
        return np.asarray(self.table[column].to_numpy())

    def _value(self, column: str, row: int) -> Any:
        return self.table[column][int(row)].as_py()


class Samples(Dataset[Sample]):
    """A selection of an index's rows. Each sample is decoded, and repaired if wanted, on access.

    Attributes:
        rows: The row of each sample.
        is_repaired: Whether repairs are applied.
        images: Image names to replace, with their replacements.
    """

    def __init__(
        self,
        index: SampleIndex,
        rows: np.ndarray,
        *,
        repaired: bool = False,
        images: Mapping[str, str] | None = None,
    ) -> None:
        self._index = index
        self.is_repaired = repaired
        self.rows = rows
        self.images = images or {}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        sample = self._index[self.rows[position]]
        if self.is_repaired:
            sample, _ = repair_sample(sample)
        image = self.images.get(sample.image or "")
        return sample if image is None else replace(sample, image=image)

    def select(self, positions: np.ndarray) -> Samples:
        """Return some of the samples, in the given order."""
        return Samples(self._index, self.rows[positions], repaired=self.is_repaired, images=self.images)


def problem_code(kind: str) -> str:
    """Return the error code of a kind of problem."""
    return kind.replace(" ", "-")


def open_index(data_path: Path) -> SampleIndex:
    """Open the index of a training file, building it first if needed; other processes wait for that.

    Bad records are indexed, too. A policy decides what to do about them.

    Raises:
        DataError: The file is missing, is not JSON, or changes while it is read.
    """
    if not data_path.is_file():
        raise DataError(f"{data_path}: no such file", code="missing-file")
    for folder in _candidate_folders(data_path):
        if (index := _load_current(data_path, folder)) is not None:
            return index
    folder = _writable_folder(data_path)
    with hold_lock(folder / LOCK, f"{data_path}: another process is reading it"):
        index = _load_current(data_path, folder)
        if index is None:
            _build(data_path, folder)
            index = _load_current(data_path, folder)
    if index is None:
        raise DataError(
            f"{data_path}: changed while it was read; start again when it is complete", code="file-changed"
        )
    return index


@contextmanager
def hold_lock(path: Path, reason: str) -> Iterator[None]:
    """Hold a lock file during the block; log `reason` if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for it", reason)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _candidate_folders(data_path: Path) -> Iterator[Path]:
    """Yield the folders that may hold the index, preferred ones first."""
    if CACHE_VARIABLE not in os.environ:
        yield data_path.with_name(f"{data_path.name}.index")
    path = str(data_path.resolve())
    yield cache_folder() / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{data_path.name}.index"


def _writable_folder(data_path: Path) -> Path:
    for folder in _candidate_folders(data_path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.debug("%s: %s", folder, error.strerror)
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise DataError(
        f"{data_path}: no folder for its index can be written; set {CACHE_VARIABLE} to one",
        code="no-cache-folder",
    )


def _load_current(data_path: Path, folder: Path) -> SampleIndex | None:
    """Return the index in a folder; None if there is none, it is stale, or it was changed."""
    try:
        if read_json(folder / STAMP) != _stamp(data_path, folder):
            return None
        return SampleIndex(data_path, folder)
    except (DataError, OSError, pa.ArrowException):
        return None


def _stamp(data_path: Path, folder: Path) -> dict[str, object]:
    return {"format": FORMAT, "file": _file_state(data_path), "index": _file_state(folder / SAMPLES)}


def _file_state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _build(data_path: Path, folder: Path) -> None:
    before = _file_state(data_path)
    for derived in folder.glob("lengths-*"):
        derived.unlink()
    with (
        progress_bar(name=f"indexing {data_path.name}", total=before[0], unit="B") as bar,
        atomic_write(folder / SAMPLES, binary=True) as stream,
        pa.ipc.new_file(stream, _SCHEMA) as writer,
    ):
        columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
        characters = 0
        for place, record in read_records(data_path, bar.update):
            row = _row(place, record)
            for name, value in row.items():
                columns[name].append(value)
            if isinstance(texts := row["texts"], list):
                characters += sum(map(len, texts))
            if len(columns["place"]) == _BATCH or characters > _BATCH_CHARACTERS:
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                columns = {name: [] for name in _SCHEMA.names}
                characters = 0
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
    write_json(folder / STAMP, _stamp(data_path, folder) | {"file": before})


def _row(place: int, record: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(_SCHEMA.names)
    row["place"] = place
    sample: Sample | None
    try:
        sample = parse_sample(record, "")
    except RecordError as error:
        sample = error.sample
        row |= {"kind": error.kind, "problem": str(error)}
    if isinstance(record, dict) and sample is not None:
        row["id"] = None if record.get("id") is None else json.dumps(sample.id)
        row["image"], row["type"] = sample.image, sample.type
        row["gpt first"] = sample.turns[0].speaker == "gpt"
        row["texts"] = [turn.text for turn in sample.turns]
        row["length"], row["modality length"] = group_lengths(sample)
        row["image in vain"] = has_unused_image_token(sample)
        row["mended"] = repair_sample(sample)[1] or None
    if row["kind"] is None and sample is not None:
        row |= {column: _fits(sample, style) for style, column in _CHOOSY_COLUMNS.items()}
    return row


def _fits(sample: Sample, style: SeparatorStyle) -> bool:
    try:
        require_supervisable(sample, _CHOOSY_TEMPLATES[style])
    except DataError:
        return False
    return True
