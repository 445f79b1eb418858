"""Fingerprints of models, so that two runs can be compared. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llava.files import read_json
from llava.infer.digests import hash_file, hash_files_once

_WEIGHTS = {".safetensors", ".bin"}
_TRAINING_STATE = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
_CONFIGS = {
    *("config.json", "adapter_config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt"),
}


def fingerprint_model(path: str, base: str | None) -> dict[str, str | None]:
    """Return a digest of each folder that a model is loaded from: `weights`, `base` and `tower`.

    Every byte of their weights, configs and tokenizers counts, and the folders' names do not: a copy of a
    model has its fingerprint.

    Args:
        path: A folder or a hub id, which is downloaded.
        base: The base of an adapter or projector; None for the one that the adapter names.

    Raises:
        CheckpointError: A folder does not exist and is not on the hub.
    """
    # The hub's client, only where a model is asked.
    from llava.model.loading.locate import locate, run_folders

    folder = locate(path)
    is_whole = not any(folder.glob("adapter_config.json")) and not any(folder.glob("mm_projector.*"))
    named = None if is_whole else base or _field(folder / "adapter_config.json", "base_model_name_or_path")
    base_folder = locate(named, near=[folder], what="base model") if named else None
    _, *run = run_folders(folder)
    places = [folder, *run, *([base_folder] if base_folder else [])]
    config = next((place for place in places if (place / "config.json").is_file()), folder)
    tower = _field(config / "config.json", "mm_vision_tower")
    return {
        "weights": fingerprint_folder(folder, *({config} & {*run})),
        "base": fingerprint_folder(base_folder) if base_folder else None,
        "tower": fingerprint_folder(locate(tower, near=places, what="vision tower")) if tower else None,
    }


def _field(file: Path, name: str) -> str | None:
    """Return a text field of a JSON file; None if the file or the field is not there."""
    fields = read_json(file) if file.is_file() else None
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, str) and value else None


def fingerprint_folder(folder: Path, *configs: Path) -> str:
    """Return a digest of a model's files in `folder`, and of the config.json in each folder of `configs`."""
    files = [file for file in sorted(folder.iterdir()) if _counts(file)]
    files += [place / "config.json" for place in configs if (place / "config.json").is_file()]
    weights = [file for file in files if file.suffix in _WEIGHTS]
    digests = dict(zip(weights, hash_files_once(weights), strict=True))
    lines = [f"{file.name} {digests.get(file) or hash_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _counts(file: Path) -> bool:
    is_weights = file.suffix in _WEIGHTS and file.name not in _TRAINING_STATE
    is_read = file.name in _CONFIGS or file.suffix == ".model" or file.name.endswith(".index.json")
    return (is_weights or is_read) and file.is_file()
