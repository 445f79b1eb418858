"""Detect what a checkpoint folder holds; read and write the files that LLaVA training adds to it.

`mm_projector.bin` and `non_lora_trainables.bin` are read under every key prefix that LLaVA versions have
used, and written with the original's. Knows no model class.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from llava.errors import CheckpointError, DataError
from llava.files import read_json
from llava.model.loading.weights import Tensors, find_weight_files, read_tensors, write_bin
from llava.schema import JsonObject

Kind = Literal["adapter", "projector", "full"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
NON_LORA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")


def detect_kind(folder: Path) -> Kind:
    """Return what `folder` holds, judged by its files and never by its name.

    An adapter wins over full weights in the same folder: under ZeRO-3 a LoRA run writes both, and the full
    weights lack the adapter.

    Raises:
        CheckpointError: It holds none of the three kinds.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    if find_weight_files(folder):
        return "full"
    if find_first_file(folder, PROJECTOR_FILES):
        return "projector"
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6])
    raise CheckpointError(
        f"{folder}: no model here; wanted {ADAPTER_CONFIG}, mm_projector.bin or model weights (.safetensors, "
        f".bin). It holds {held or 'nothing'}",
        code="missing-model",
    )


def find_first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the path of the first of `names` that `folder` has, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_config(folder: Path) -> JsonObject:
    """Return the fields of the folder's `config.json`.

    Raises:
        CheckpointError: The file is missing or is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; copy it from the run's output folder", code="missing-config"
        )
    return read_json_object(path)


def describe_owner(config: object) -> str:
    """Return what to call the owner of a field in a message: a checkpoint's config.json, or the model."""
    folder = getattr(config, "name_or_path", None)  # training flags have none
    return f"{folder}/config.json" if folder else "the model"


def read_json_object(path: Path) -> JsonObject:
    """Return the JSON object in a checkpoint's file.

    Raises:
        CheckpointError: The file is missing or is not a JSON object.
    """
    try:
        fields = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error), code=error.code) from error
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{path}: found {type(fields).__name__}, wanted a JSON object", code="not-an-object"
        )
    return fields


def read_non_lora(folder: Path) -> Tensors:
    """Return the weights trained besides an adapter, keyed by the model's own names; {} if there are none.

    Files of different LLaVA versions key the same weight as `base_model.model.model.x`,
    `base_model.model.x`, `model.model.x` or `model.x`.
    """
    path = find_first_file(folder, NON_LORA_FILES)
    return (
        {} if path is None else {strip_wrappers(name): tensor for name, tensor in read_tensors(path).items()}
    )


def strip_wrappers(name: str) -> str:
    """Return a weight's name in `LlavaLlamaForCausalLM`, without the prefixes that wrappers add."""
    bare = re.sub(r"^(base_model\.|module\.)*(model\.)*", "", name)
    return bare if bare.startswith("lm_head.") else f"model.{bare}"


def write_non_lora(folder: Path, tensors: Tensors) -> None:
    """Write `non_lora_trainables.bin`, keyed as in the original: `base_model.model.model.mm_projector.…`."""
    write_bin(
        folder / "non_lora_trainables.bin", {_wrapped_name(name): tensor for name, tensor in tensors.items()}
    )


def write_projector(folder: Path, tensors: Tensors) -> None:
    """Write `mm_projector.bin`, keyed as in the original: `model.mm_projector.…`."""
    write_projector_file(folder / PROJECTOR_FILES[-1], tensors)


def write_projector_file(path: Path, tensors: Tensors) -> None:
    """Write a projector to `path`, keyed as in the original."""
    write_bin(path, {strip_wrappers(name): tensor for name, tensor in tensors.items()})


def read_projector(path: Path) -> Tensors:
    """Return the projector of a stage-1 file, keyed by the projector's own names (`0.weight`, ...).

    Raises:
        CheckpointError: The file cannot be read, or holds no projector.
    """
    prefix = "mm_projector."
    found = read_tensors(path, lambda name: prefix in name)
    if not found:
        raise CheckpointError(
            f"{path}: holds no mm_projector weights; wanted a stage-1 mm_projector.bin",
            code="missing-projector",
        )
    return {name.split(prefix, 1)[1]: tensor for name, tensor in found.items()}


def extract_projector(folder: Path) -> Tensors:
    """Return the projector's weights of a checkpoint of any kind, keyed by the model's own names.

    Raises:
        CheckpointError: It has none.
    """
    kind = detect_kind(folder)
    names = {"adapter": NON_LORA_FILES, "projector": PROJECTOR_FILES, "full": ()}[kind]
    files = [path for path in [find_first_file(folder, names)] if path] or find_weight_files(folder)
    found: Tensors = {}
    for path in files:
        found |= read_tensors(path, lambda name: "mm_projector" in name)
    if not found:
        raise CheckpointError(f"{folder}: holds no mm_projector weights", code="missing-projector")
    return {strip_wrappers(name): tensor for name, tensor in found.items()}


def _wrapped_name(name: str) -> str:
    return f"base_model.model.{strip_wrappers(name)}"
