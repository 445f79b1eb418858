"""Of which folders a model is made: its own, its base's, and which of them has config and tokenizer.

What a folder holds is told from its files, never from its name. Reads no weights.
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
from llava.model.loading.locate import locate

logger = logging.getLogger(__name__)

# What an adapter or a projector and its base must agree on.
_SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the parts of a model come from. `folder` is `base` where the model is whole."""

    kind: Kind
    folder: Path
    base: Path
    config_folder: Path

    @property
    def is_multimodal(self) -> bool:
        """Whether its config is that of a LLaVA model.

        Raises:
            CheckpointError: It calls itself one but names no vision tower.
        """
        fields = read_config(self.config_folder)
        if fields.get("mm_vision_tower") or "text_config" in fields:
            return True
        said = [str(fields.get("model_type")), *(fields.get("architectures") or [])]
        if any(name.lower().startswith("llava") for name in said):
            raise CheckpointError(
                f"{self.config_folder}: config.json calls itself {said[0]} but has no mm_vision_tower: name "
                "the tower there"
            )
        return False

    @property
    def folders(self) -> list[Path]:
        """Where a relative name in the config may start from."""
        return [self.config_folder, self.folder, self.base]

    @property
    def tokenizer_folder(self) -> Path:
        """The folder's own tokenizer if it has one, else the base's."""
        has_own = find_first_file(self.folder, ("tokenizer.model", "tokenizer.json"))
        return self.folder if has_own else self.base


def find_source(model_path: str | Path, model_base: str | Path | None) -> Source:
    """Find the folders a model is made of; says so when it takes a base that was not given, or needs none."""
    folder = locate(model_path)
    kind = detect_kind(folder)
    if kind == "full":
        if model_base is not None:
            logger.warning(f"{folder} holds a whole model: the base {model_base} is not used")
        return Source(kind, folder, folder, folder)
    if model_base is None and kind == "adapter" and (named := _base_of(folder)):
        logger.info(f"{folder} is an adapter; its base {named} is taken from {ADAPTER_CONFIG}")
        model_base = named
    if model_base is None:
        trained_on = read_config(folder).get("_name_or_path") if (folder / "config.json").is_file() else None
        hint = f", probably {trained_on}" if trained_on else ""
        raise CheckpointError(
            f"{folder}: holds {'an adapter' if kind == 'adapter' else 'a projector'} only: give its language "
            f"model as --model-base{hint}"
        )
    base = locate(model_base, near=[folder], what="base model")
    source = Source(kind, folder, base, _config_folder(folder, base))
    if source.is_multimodal:
        _require_fit(source)
    elif kind == "projector":
        raise CheckpointError(
            f"{source.config_folder}: config.json has no mm_vision_tower, which a projector needs"
        )
    return source


def _config_folder(folder: Path, base: Path) -> Path:
    """Whose config.json describes the model: the folder's own, its run's, its base's."""
    places = [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else []), base]
    return next((place for place in places if (place / "config.json").is_file()), folder)


def _require_fit(source: Source) -> None:
    config = LlavaConfig.from_pretrained(source.config_folder)
    base = LlavaConfig.from_pretrained(source.base)
    for name in _SHAPE:
        if getattr(config, name) != getattr(base, name):
            raise CheckpointError(
                f"{source.base}: does not fit {source.folder}: {name} is {getattr(base, name)} there and "
                f"{getattr(config, name)} here; give the base it was trained on"
            )
    # Training may have added a patch, a start and an end token.
    if not 0 <= config.vocab_size - base.vocab_size <= 3:
        raise CheckpointError(
            f"{source.base}: does not fit {source.folder}: vocab_size is {base.vocab_size} there and "
            f"{config.vocab_size} here; give the base it was trained on"
        )


def _base_of(folder: Path) -> str | None:
    """The base model that an adapter names, None if it names none."""
    return read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or None
