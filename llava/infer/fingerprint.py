"""What a model's answers depend on, as short text that two runs can compare. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llava.files import read_json

# Every weight moves in training, so a few blocks of each file tell two checkpoints apart; reading all 13 GB
# in every process would cost more than loading them.
_BLOCK_BYTES = 64 * 1024
_BLOCKS = 16
_SUFFIXES = {".safetensors", ".bin", ".model"}
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", "preprocessor_config.json")


def checkpoint_fingerprint(path: str) -> str:
    """A digest of a checkpoint folder's weights and configs; the name itself of a model on a hub.

    A weights file counts by name, size and 16 blocks of 64 KiB spread over it, so copying a folder changes
    nothing and training on changes the digest.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if not file.is_file() or (file.suffix not in _SUFFIXES and file.name not in _CONFIGS):
            continue
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(_sample(file))
    return digest.hexdigest()[:16]


def named_base(path: str) -> str | None:
    """The base that an adapter folder names in its adapter_config.json; None for other checkpoints."""
    config = Path(path).expanduser() / "adapter_config.json"
    if not config.is_file():
        return None
    base = read_json(config).get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(stream.read())
        else:
            for number in range(_BLOCKS):
                stream.seek(number * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.digest()
