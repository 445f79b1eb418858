"""What a folder of weights is, told from its files, and the parts a LLaVA run leaves behind.

`mm_projector.bin`, `non_lora_trainables.bin`, adapters: reading them under every name they have had, writing
them under the original's. Knows no model class.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from llava.errors import CheckpointError, DataError
from llava.files import read_json
from llava.model.loading.weights import Tensors, find_weight_files, read_tensors, write_bin

Kind = Literal["adapter", "projector", "full"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
NON_LORA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")


def detect_kind(folder: Path) -> Kind:
    """What `folder` holds, whatever it is called.

    An adapter wins over whole weights beside it: under ZeRO-3 a LoRA run writes both, and the whole ones lack
    the adapter.

    Raises:
        CheckpointError: It holds none of the three.
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
        f".bin). It holds {held or 'nothing'}"
    )


def find_first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is in `folder`."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of `config.json`.

    Raises:
        CheckpointError: There is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; copy it from the run's output folder")
    return read_json_object(path)


def describe_owner(settings: Any) -> str:
    """Whose fields these are, for a message: those of a checkpoint's config, or the training flags."""
    folder = getattr(settings, "name_or_path", None)
    return f"{folder}/config.json" if folder else "the model"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file, or a `CheckpointError`."""
    try:
        fields = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: found {type(fields).__name__}, wanted a JSON object")
    return fields


def read_non_lora(folder: Path) -> Tensors:
    """The trained weights beside an adapter under the model's own names; empty where there are none.

    Files from different runs say `base_model.model.model.x`, `base_model.model.x`, `model.model.x` or
    `model.x` for the same weight.
    """
    path = find_first_file(folder, NON_LORA_FILES)
    return (
        {} if path is None else {strip_wrappers(name): tensor for name, tensor in read_tensors(path).items()}
    )


def strip_wrappers(name: str) -> str:
    """A weight's name in `LlavaLlamaForCausalLM`, without what wrappers put before it."""
    bare = re.sub(r"^(base_model\.|module\.)*(model\.)*", "", name)
    return bare if bare.startswith("lm_head.") else f"model.{bare}"


def write_non_lora(folder: Path, tensors: Tensors) -> None:
    """Write `non_lora_trainables.bin`, keys as the original's: `base_model.model.model.mm_projector.…`."""
    write_bin(
        folder / "non_lora_trainables.bin", {_wrapped_name(name): tensor for name, tensor in tensors.items()}
    )


def write_projector(folder: Path, tensors: Tensors) -> None:
    """Write `mm_projector.bin`, keys as the original's: `model.mm_projector.…`."""
    write_projector_file(folder / PROJECTOR_FILES[-1], tensors)


def write_projector_file(path: Path, tensors: Tensors) -> None:
    """`write_projector` under a name of one's own."""
    write_bin(path, {strip_wrappers(name): tensor for name, tensor in tensors.items()})


def read_projector(path: Path) -> Tensors:
    """The projector's tensors in a stage-1 file, under the projector's own names (`0.weight`, ...).

    Raises:
        CheckpointError: The file cannot be read, or holds no projector.
    """
    mark = "mm_projector."
    found = read_tensors(path, lambda name: mark in name)
    if not found:
        raise CheckpointError(f"{path}: holds no mm_projector weights; wanted a stage-1 mm_projector.bin")
    return {name.split(mark, 1)[1]: tensor for name, tensor in found.items()}


def extract_projector(folder: Path) -> Tensors:
    """The projector's weights in a checkpoint of any kind, under the model's own names.

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
        raise CheckpointError(f"{folder}: holds no mm_projector weights")
    return {strip_wrappers(name): tensor for name, tensor in found.items()}


def _wrapped_name(name: str) -> str:
    return f"base_model.model.{strip_wrappers(name)}"
