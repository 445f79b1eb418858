"""Decide which folders make up a model: its own, its base's, and where its config and tokenizer are.

Only files decide, never a folder's name. Reads no weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llava.errors import CheckpointError
from llava.model.language_model.llava_llama import LlavaConfig
from llava.model.loading.checkpoint import (
    ADAPTER_CONFIG,
    Kind,
    detect_kind,
    find_first_file,
    read_config,
    read_json_object,
)
from llava.model.loading.locate import locate, run_folders
from llava.model.loading.run_record import require_trained_base

logger = logging.getLogger(__name__)

# The config fields on which an adapter or a projector and its base must agree.
_SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """The folders that make up a model. For a full model, `folder` and `base` are the same.

    `base_name` is how the user or the adapter names the base; None for a full model.
    """

    kind: Kind
    folder: Path
    base: Path
    config_folder: Path
    base_name: str | None = None

    @property
    def is_multimodal(self) -> bool:
        """Whether the config is that of a LLaVA model.

        Raises:
            CheckpointError: Its model type or class is LLaVA's, but it names no vision tower.
        """
        fields = read_config(self.config_folder)
        if fields.get("mm_vision_tower") or "text_config" in fields:
            return True
        types = [str(fields.get("model_type")), *(fields.get("architectures") or [])]
        if any(name.lower().startswith("llava") for name in types):
            raise CheckpointError(
                f"{self.config_folder}: config.json has model_type {types[0]} but no mm_vision_tower: name "
                "the tower there",
                code="missing-vision-tower",
            )
        return False

    @property
    def folders(self) -> list[Path]:
        """The folders from which a relative path in the config is resolved."""
        return [self.config_folder, self.folder, self.base]

    def measure_weights(self) -> int:
        """Return the size of the language model's weight files, in bytes. Most are in half precision."""
        files = [*self.base.glob("*.safetensors")] or [*self.base.glob("pytorch_model*.bin")]
        return sum(path.stat().st_size for path in files)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder itself if it has a tokenizer, else the base's."""
        has_own = find_first_file(self.folder, ("tokenizer.model", "tokenizer.json"))
        return self.folder if has_own else self.base


def find_source(model_path: str | Path, model_base: str | Path | None) -> Source:
    """Find the folders that make up a model. An adapter without `model_base` uses the base it names.

    Raises:
        CheckpointError: A folder is missing, a base is needed, or the base does not fit.
    """
    folder = locate(model_path)
    kind = detect_kind(folder)
    if kind == "full":
        if model_base is not None:
            logger.warning(f"{folder} holds a full model: the base {model_base} is not used")
        return Source(kind, folder, folder, folder)
    if model_base is None and kind == "adapter" and (named := _read_base_name(folder)):
        logger.info(f"{folder} is an adapter; its base {named} is taken from {ADAPTER_CONFIG}")
        model_base = named
    if model_base is None:
        trained_on = read_config(folder).get("_name_or_path") if (folder / "config.json").is_file() else None
        hint = f", probably {trained_on}" if trained_on else ""
        raise CheckpointError(
            f"{folder}: holds {'an adapter' if kind == 'adapter' else 'a projector'} only: give its language "
            f"model as --model-base{hint}",
            code="base-needed",
        )
    base = locate(model_base, near=[folder], what="base model")
    source = Source(kind, folder, base, _find_config_folder(folder, base), str(model_base))
    if source.is_multimodal:
        _require_fit(source)
    elif kind == "projector":
        raise CheckpointError(
            f"{source.config_folder}: config.json has no mm_vision_tower, which a projector needs",
            code="missing-vision-tower",
        )
    require_trained_base(folder, base)
    return source


def _find_config_folder(folder: Path, base: Path) -> Path:
    """Return the folder whose config.json describes the model: its own, its run's or its base's."""
    candidates = [*run_folders(folder), base]
    return next((place for place in candidates if (place / "config.json").is_file()), folder)


def _require_fit(source: Source) -> None:
    config = LlavaConfig.from_pretrained(source.config_folder)
    base = LlavaConfig.from_pretrained(source.base)
    unequal = [name for name in _SHAPE if getattr(config, name) != getattr(base, name)]
    # Training may have added a patch, a start and an end token.
    if not 0 <= config.vocab_size - base.vocab_size <= 3:
        unequal.append("vocab_size")
    for name in unequal:
        raise CheckpointError(
            f"{source.base}: does not fit {source.folder}: {name} is {getattr(base, name)} there and "
            f"{getattr(config, name)} here; give the base it was trained on",
            code="base-mismatch",
        )


def _read_base_name(folder: Path) -> str | None:
    """Return the base that an adapter names, or None."""
    return read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or None
