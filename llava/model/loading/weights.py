"""Find, check and read tensor files: `.safetensors` or `.bin`, single or as shards with an index.

Files are read as data only; code in a pickle never runs. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import ctypes
import io
import logging
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from llava.errors import CheckpointError, DataError
from llava.files import atomic_write, read_json

Tensors = dict[str, torch.Tensor]
Place = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]  # where in a tensor

_MMAP_THRESHOLD = -3  # <malloc.h>: blocks from this size on are mapped one by one
# In transformers' order of preference.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's full model, [] if there is none.

    Raises:
        CheckpointError: An index cannot be read, or names a shard that is missing.
    """
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _read_index(folder / index)
    return []


def check_weight_files(folder: Path) -> list[Path]:
    """Return the folder's weight files after checking that each is complete.

    Raises:
        CheckpointError: There are none, or one is missing, truncated or not of its suffix's format.
    """
    files = find_weight_files(folder)
    if not files:
        raise CheckpointError(
            f"{folder}: no weights; wanted one of {', '.join(_SINGLE + _INDEX)}", code="missing-weights"
        )
    for path in files:
        check_weight_file(path)
    return files


def check_weight_file(path: Path) -> None:
    """Raise a `CheckpointError` if `path` is missing or incomplete, without reading its tensors."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; fetch or copy the checkpoint again", code="missing-file"
        )
    with path.open("rb") as stream:
        start = stream.read(20)
    if start.startswith(b"version https://git"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` there", code="lfs-pointer"
        )
    if path.suffix == ".safetensors":
        with _open_safetensors(path):
            return
    if not start:
        raise _unreadable(path, "empty")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _unreadable(path, "cut short")


def read_tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors in `path`."""
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as stream:
            return list(stream.keys())
    return list(_load_bin(path))


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """Read tensors from a .safetensors or .bin file onto the CPU. Pickled code in a .bin file never runs.

    Args:
        path: The file.
        wanted: Says whether a tensor of this name is returned.

    Raises:
        CheckpointError: The file is missing, truncated, a Git LFS pointer, or contains something that is not
            a tensor.
    """
    check_weight_file(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as stream:
            return {name: stream.get_tensor(name) for name in stream.keys() if wanted(name)}  # noqa: SIM118
    return {name: tensor for name, tensor in _load_bin(path).items() if wanted(name)}


class Slices(Protocol):
    """A tensor of which only the parts that are asked for are read; safetensors and torch have such."""

    def __getitem__(self, places: tuple[slice, ...], /) -> torch.Tensor:
        """Return a part."""


@dataclass(frozen=True, slots=True)
class TensorOnDisk:
    """A tensor that is read when it is indexed, in the precision `dtype`. Then its file is closed again."""

    path: Path
    name: str
    dtype: torch.dtype

    def __getitem__(self, place: Place) -> torch.Tensor:
        tensor = read_tensors(self.path, lambda name: name == self.name)[self.name]
        return tensor[place].to(self.dtype, copy=True)


def list_tensors(paths: Sequence[Path], dtype: torch.dtype) -> dict[str, TensorOnDisk | torch.Tensor]:
    """Return the tensors of weight files, for a model that reads them one at a time.

    A mapped file counts as memory as long as one of its tensors is in use. The `.bin` format of before
    PyTorch 1.6 can only be read at once.
    """
    tensors: dict[str, TensorOnDisk | torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors" or zipfile.is_zipfile(path):
            tensors |= {name: TensorOnDisk(path, name, dtype) for name in read_tensor_names(path)}
        else:
            tensors |= read_tensors(path)
    return tensors


def read_first_values(
    path: Path, wanted: Callable[[str], bool], count: int = 8
) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Return the shape and the first values of the tensors whose name is wanted, without reading the rest.

    Args:
        path: A file of tensors.
        wanted: Which of them.
        count: How many values of the first row, at most.

    Raises:
        CheckpointError: The file is missing, truncated, or holds anything but tensors.
    """
    check_weight_file(path)
    found: dict[str, tuple[list[int], torch.Tensor]] = {}

    def take(name: str, tensor: Slices, shape: list[int]) -> None:
        places = (*(slice(1) for _ in shape[1:]), slice(count))
        found[name] = shape, tensor[places[: len(shape)]].flatten().clone()

    if path.suffix == ".safetensors":
        with _open_safetensors(path) as stream:
            for name in filter(wanted, stream.keys()):
                take(name, part := stream.get_slice(name), part.get_shape())
    else:
        for name, tensor in _load_bin(path).items():
            if wanted(name):
                take(name, tensor, [*tensor.shape])
    return found


def write_bin(path: Path, tensors: Tensors) -> None:
    """Write a `.bin` atomically, in a format that old and new versions of torch read.

    A view is stored on its own, without the tensor it is a view of.
    """
    # Not into the file: for a full disk, torch raises an error that names neither disk nor file.
    content = io.BytesIO()
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, content)
    with atomic_write(path, binary=True) as stream:
        stream.write(content.getbuffer())


def return_freed_tensors() -> None:
    """Have glibc return the memory of a tensor to the system when it is freed, in this whole process.

    By default it keeps blocks of up to 32 MiB for later, which in a model's weights is a second copy.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, 2**20)


@contextmanager
def hide_load_report() -> Iterator[None]:
    """Silence transformers' table of missing and unused weights; the caller handles them itself."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(is_no_report)
    try:
        yield
    finally:
        reporter.removeFilter(is_no_report)


def _read_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weight files ({error})", code="bad-index") from error
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        listed = ", ".join(missing[:3])
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(paths)} weight files are missing: {listed}; "
            "fetch or copy them again",
            code="missing-shards",
        )
    return paths


@contextmanager
def _open_safetensors(path: Path) -> Iterator[safe_open]:
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    with opened as stream:
        yield stream


def _load_bin(path: Path) -> Tensors:
    try:
        # Memory-mapped, because often only the projector of a 10 GB shard is wanted.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; it is not run. Fetch it again from a "
            "source you trust",
            code="unsafe-pickle",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"{path}: holds {type(loaded).__name__}, wanted a table of named tensors", code="not-tensors"
        )
    return loaded


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read ({reason.strip()}); fetch or copy the file again", code="unreadable-weights"
    )
