"""Files of tensors: which ones a folder has, whether they are whole, and reading parts of them.

`.safetensors` or `.bin`, single or in shards with an index. Nothing in a file is ever executed.
Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llava.errors import CheckpointError, DataError
from llava.files import atomic_write, read_json

Tensors = dict[str, torch.Tensor]

# In the order in which transformers takes them.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's whole model, none if it has no model.

    Raises:
        CheckpointError: An index is not readable, or names a shard that is not there.
    """
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    return []


def check_weight_files(folder: Path) -> list[Path]:
    """The folder's weight files, each known to be whole.

    Raises:
        CheckpointError: There are none, or one is missing, cut short or of another kind than its name says.
    """
    files = find_weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder}: no weights; wanted one of {', '.join(_SINGLE + _INDEX)}")
    for path in files:
        check_weight_file(path)
    return files


def check_weight_file(path: Path) -> None:
    """Raise a `CheckpointError` if `path` is missing or not whole; reads no tensor."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; fetch or copy the checkpoint again")
    with path.open("rb") as stream:
        start = stream.read(20)
    if start.startswith(b"version https://git"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` there")
    if path.suffix == ".safetensors":
        with _opened(path):
            return
    if not start:
        raise _broken(path, "empty")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _broken(path, "cut short")


def read_tensor_names(path: Path) -> list[str]:
    """The names of the tensors in `path`."""
    if path.suffix == ".safetensors":
        with _opened(path) as stream:
            return list(stream.keys())
    return list(_load_bin(path))


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """The tensors in `path` whose name is wanted, on the CPU.

    Raises:
        CheckpointError: The file is missing, cut short, or holds anything but tensors.
    """
    check_weight_file(path)
    if path.suffix == ".safetensors":
        with _opened(path) as stream:
            return {name: stream.get_tensor(name) for name in stream.keys() if wanted(name)}  # noqa: SIM118
    return {name: tensor for name, tensor in _load_bin(path).items() if wanted(name)}


def write_bin(path: Path, tensors: Tensors) -> None:
    """Write a `.bin` that old and new readers take, in one step; views are stored without their base."""
    with atomic_write(path, binary=True) as stream:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, stream)


@contextmanager
def hide_load_report() -> Iterator[None]:
    """Hush transformers' table of missing and unused weights: a reader sets or refuses them itself."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(is_other)
    try:
        yield
    finally:
        reporter.removeFilter(is_other)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weight files ({error})") from error
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        listed = ", ".join(missing[:3])
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(paths)} weight files are missing: {listed}; "
            "fetch or copy them again"
        )
    return paths


class _opened:
    """`safe_open` with its errors said our way."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> safe_open:
        try:
            self._stream = safe_open(self._path, framework="pt").__enter__()
        except (SafetensorError, OSError) as error:
            raise _broken(self._path, str(error)) from error
        return self._stream

    def __exit__(self, *raised: object) -> None:
        self._stream.__exit__(*raised)


def _load_bin(path: Path) -> Tensors:
    try:
        # Mapped, not read: of a shard of 10 GB often only the projector is wanted.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; it is not run. Fetch it again from a "
            "source you trust"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: holds {type(loaded).__name__}, wanted a table of named tensors")
    return loaded


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({why.strip()}); fetch or copy the file again")
