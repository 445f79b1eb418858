"""The vision tower that a config or a command's flags name."""

from __future__ import annotations

from typing import Any

from llava.errors import CheckpointError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> CLIPVisionTower:
    """The tower under `mm_vision_tower` (a checkpoint's config) or `vision_tower` (training flags).

    Any folder or hub id of a CLIP vision model will do; a name that is neither fails when it is loaded.
    """
    # Two kinds of owner, one rule: a config has `mm_vision_tower`, the flags have `vision_tower`.
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    if not name:
        raise CheckpointError("no vision tower is named: config.json needs mm_vision_tower")
    return CLIPVisionTower(name, args=vision_tower_cfg, **kwargs)
