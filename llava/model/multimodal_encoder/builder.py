"""Build the vision tower that a config or the training flags name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPVisionModel

from llava.errors import CheckpointError
from llava.model.loading.locate import locate
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def write_vision_model(clip: CLIPVisionModel, folder: str | Path) -> None:
    """Write a CLIP vision model that transformers 4 can read, too.

    transformers 5 leaves out `vision_model.` in the names of a model's tensors; transformers 4, on which the
    original runs, then fills all of them with random numbers and only warns.
    """
    named = {f"vision_model.{name}": tensor for name, tensor in clip.state_dict().items()}
    clip.save_pretrained(folder, state_dict=named)


def build_vision_tower(vision_tower_cfg: object, **kwargs: bool) -> CLIPVisionTower:
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


def load_vision_tower(tower: CLIPVisionTower, *, near: Sequence[Path]) -> None:
    """Load a tower's weights, ours or those of another class with the original's methods.

    Args:
        tower: What `build_vision_tower` returned.
        near: Checkpoint folders near which a relative name is also looked up; see `locate`.
    """
    if not tower.is_loaded:
        tower.vision_tower_name = str(locate(tower.vision_tower_name, near=near, what="vision tower"))
        tower.load_model()
