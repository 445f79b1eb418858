"""Build the vision tower that a config or the training flags name."""

from __future__ import annotations

from typing import Any

from llava.errors import CheckpointError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def build_vision_tower(vision_tower_cfg: object, **kwargs: Any) -> CLIPVisionTower:
    """Build the tower named by `mm_vision_tower` (a checkpoint's config) or `vision_tower` (training flags).

    The name is a folder or hub id of a CLIP vision model. It is looked up when the weights are loaded, which
    is now unless `kwargs` has `delay_load=True`.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    if not name:
        raise CheckpointError(
            "no vision tower is named: config.json needs mm_vision_tower", code="missing-vision-tower"
        )
    return CLIPVisionTower(name, args=vision_tower_cfg, **kwargs)
