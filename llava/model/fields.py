"""Read the fields of the image side from a config of any language model.

A config has only the fields that its checkpoint has, as in the original: code written for it asks `hasattr`,
or `getattr` with a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class ImageFields:
    """The fields of a config that belong to the image side. A field that the config lacks is None."""

    mm_vision_tower: str | None = None  # set for multimodal models only
    mm_hidden_size: int | None = None
    mm_projector_type: str | None = None  # None means linear
    mm_vision_select_layer: int | None = None
    mm_vision_select_feature: str | None = None  # None means patch
    mm_patch_merge_type: str | None = None  # None means flat
    mm_use_im_start_end: bool | None = None
    mm_use_im_patch_token: bool | None = None
    use_mm_proj: bool | None = None
    unfreeze_mm_vision_tower: bool | None = None
    tune_mm_mlp_adapter: bool | None = None
    freeze_mm_mlp_adapter: bool | None = None
    mm_projector_lr: float | None = None
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: str | Sequence[Sequence[int]] | None = None
    tokenizer_model_max_length: int | None = None
    tokenizer_padding_side: str | None = None
    max_sequence_length: int | None = None

    @property
    def is_unpadded(self) -> bool:
        """Whether an image's tiles are merged without their padding, each row ending with `image_newline`."""
        return "unpad" in (self.mm_patch_merge_type or "")


IMAGE_FIELDS = tuple(field.name for field in fields(ImageFields))


def image_fields(config: object) -> ImageFields:
    """Return the image side's fields of a model's config, or of training flags with the same names."""
    return ImageFields(**{name: getattr(config, name, None) for name in IMAGE_FIELDS})
