"""Fingerprints of checkpoints, so that two runs can be compared. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from llava.files import read_json

# Reading all 13 GB in every process would cost more than loading them. What is read of each tensor tells a
# trained one from its start, also where a single tensor of a file was trained.
_TENSOR_BLOCK_BYTES = 4 * 1024
_TENSOR_BLOCKS = 3
_BLOCK_BYTES = 64 * 1024
_BLOCKS = 16
_MAX_HEADER_BYTES = 100 * 1024 * 1024
_WEIGHTS = {".safetensors", ".bin"}
_TRAINING_STATE = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
_CONFIGS = {
    *("config.json", "adapter_config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "added_tokens.json"),
    *("special_tokens_map.json", "vocab.json", "merges.txt"),
}


def checkpoint_fingerprint(path: str, near: Sequence[str] = ()) -> str:
    """Return a digest of a checkpoint's weights, configs and tokenizer, or a hub model's name and commit.

    Of a safetensors file the header and a part of every tensor count, of a .bin file the checksums that it
    holds. A vision tower in a folder of its own counts as well. Copying or moving a folder changes nothing.

    Args:
        path: A folder or a hub id.
        near: Checkpoints' folders that a relative `path` may start from, as in `model.loading.locate`.
    """
    from llava.model.loading.locate import (  # the hub's client, only where a model is asked
        find_folder,
        find_hub_revision,
    )

    folder = find_folder(path, near=[Path(place) for place in near])
    if folder is None:
        commit = find_hub_revision(path)
        return f"{path} at {commit}" if commit else path
    digest = hashlib.sha256()
    _add_folder(digest, folder)
    # A checkpoint of a run that goes on has its config one folder up.
    places = [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else [])]
    config = next((place / "config.json" for place in places if (place / "config.json").is_file()), None)
    fields = read_json(config) if config else None
    named = fields.get("mm_vision_tower") if isinstance(fields, dict) else None
    tower = find_folder(named, near=places) if isinstance(named, str) and named else None
    if tower:
        _add_folder(digest, tower)
    return digest.hexdigest()[:16]


def named_base(path: str) -> str | None:
    """Return the base that an adapter names in its adapter_config.json; None for other checkpoints."""
    config = Path(path).expanduser() / "adapter_config.json"
    if not config.is_file():
        return None
    base = read_json(config).get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def _add_folder(digest: hashlib._Hash, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        weights = file.suffix in _WEIGHTS and file.name not in _TRAINING_STATE
        if not file.is_file() or not (weights or file.name in _CONFIGS or file.suffix == ".model"):
            continue
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        for piece in _pieces(file) if weights else [file.read_bytes()]:
            digest.update(hashlib.sha256(piece).digest())


def _pieces(file: Path) -> Iterator[bytes]:
    """Return the parts of a weights file that are hashed."""
    with file.open("rb") as stream:
        if file.suffix == ".safetensors" and (header := _header(stream, file.stat().st_size)):
            yield header
            start = stream.tell()
            tensors = json.loads(header)
            tensors.pop("__metadata__", None)
            for first, last in sorted(tensor["data_offsets"] for tensor in tensors.values()):
                yield from _spread(stream, start + first, last - first, _TENSOR_BLOCKS, _TENSOR_BLOCK_BYTES)
            return
        if zipfile.is_zipfile(stream):  # torch.save's, with a checksum of each tensor's bytes
            with zipfile.ZipFile(stream) as archive:
                entries = [[entry.filename, entry.file_size, entry.CRC] for entry in archive.infolist()]
            yield json.dumps(entries).encode()
        yield from _spread(stream, 0, file.stat().st_size, _BLOCKS, _BLOCK_BYTES)


def _header(stream: BinaryIO, size: int) -> bytes | None:
    """Return the JSON header of a safetensors file, None for another file."""
    length = int.from_bytes(stream.read(8), "little")
    if length > min(size - 8, _MAX_HEADER_BYTES):
        return None
    header = stream.read(length)
    return header if header.startswith(b"{") else None


def _spread(stream: BinaryIO, start: int, size: int, blocks: int, block_bytes: int) -> Iterator[bytes]:
    """Yield `blocks` blocks spread evenly over `size` bytes, or all bytes if they are fewer."""
    if size <= blocks * block_bytes:
        stream.seek(start)
        yield stream.read(size)
        return
    for number in range(blocks):
        stream.seek(start + number * (size - block_bytes) // (blocks - 1))
        yield stream.read(block_bytes)
