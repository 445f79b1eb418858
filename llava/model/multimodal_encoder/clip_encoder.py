"""The vision tower: a frozen CLIP that gives the patch features of one of its layers.

Shapes: B images of 3 x S x S pixels, P patches, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava.errors import CheckpointError, one_line
from llava.model.fields import image_fields
from llava.model.loading.checkpoint import describe_owner
from llava.model.loading.locate import locate
from llava.model.loading.weights import check_weight_files, hide_load_report, read_tensor_names
from llava.model.overrides import find_altered, is_replaced

logger = logging.getLogger(__name__)

TOWER_PREFIX = "vision_tower.vision_tower."


class NestedCLIP(nn.Module):
    """CLIP's vision model inside a module, as transformers 4 nests it and published weights are named.

    Called, it computes what the model does; attributes that it lacks are the model's.
    """

    def __init__(self, clip: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = clip

    def forward(
        self, *inputs: torch.Tensor, output_attentions: bool = False, **settings: object
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """Call the model. With `output_attentions` it attends eagerly, since SDPA returns no weights."""
        config = self.vision_model.config
        before = config._attn_implementation
        if output_attentions:
            config._attn_implementation = "eager"
        try:
            return self.vision_model(*inputs, output_attentions=output_attentions, **settings)
        finally:
            config._attn_implementation = before

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("vision_model"), name)


class CLIPVisionTower(nn.Module):
    """CLIP up to the layer whose features are read.

    Later layers are kept, so that they can be saved, but run only with `runs_unread_layers`, or where other
    code has changed the tower and may read them. `load_model()`
    loads the weights, so that the language model can be loaded, quantised and wrapped first. State-dict keys
    are `vision_tower.vision_model.…`, as in published checkpoints.
    """

    def __init__(self, vision_tower: str, args: object, delay_load: bool = False) -> None:
        super().__init__()
        self.vision_tower_name = vision_tower
        fields = image_fields(args)
        if fields.mm_vision_select_layer is None:
            raise CheckpointError(
                f"{describe_owner(args)} has no mm_vision_select_layer; it is -2 for LLaVA-1.5",
                code="missing-field",
            )
        self.select_layer = int(fields.mm_vision_select_layer)
        self.select_feature = fields.mm_vision_select_feature or "patch"  # older configs have none
        if self.select_feature not in ("patch", "cls_patch"):
            raise CheckpointError(
                f"{describe_owner(args)} has mm_vision_select_feature {self.select_feature!r}; there are "
                "patch and cls_patch",
                code="unknown-select-feature",
            )
        self.is_loaded = False
        self.runs_unread_layers = False  # the original runs them and discards the result
        self.image_processor: CLIPImageProcessorPil | None = None
        if not delay_load:
            self.load_model()

    def load_model(self, **kwargs: object) -> None:
        """Load the image processor and the weights. A second call does nothing.

        Args:
            kwargs: Arguments of `from_pretrained`, such as dtype and device_map.
        """
        if self.is_loaded:
            logger.debug("%s is already loaded", self.vision_tower_name)
            return
        folder = locate(self.vision_tower_name, what="vision tower")
        for path in check_weight_files(folder):
            read_tensor_names(path)  # refuses a pickle of anything but tensors
        try:
            # Always Pillow's resizing: pixels must not depend on whether torchvision is installed.
            self.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
            kwargs.setdefault("dtype", torch.float32)
            with hide_load_report():
                clip, report = CLIPVisionModel.from_pretrained(folder, output_loading_info=True, **kwargs)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder}: not a CLIP vision model: {one_line(error, 300)}", code="not-a-clip-model"
            ) from error
        if report["missing_keys"]:
            raise CheckpointError(
                f"{folder}: the vision tower lacks weights, for example {min(report['missing_keys'])}",
                code="missing-weights",
            )
        clip.requires_grad_(False)
        self.vision_tower = NestedCLIP(clip)
        self.is_loaded = True

    def load_trained_weights(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        """Replace the published weights by those of a checkpoint that trained the tower.

        Args:
            tensors: Keyed as in a checkpoint of transformers 4 or 5; {} changes nothing.
            folder: The checkpoint, for error messages.

        Raises:
            CheckpointError: `tensors` lacks some of the tower's weights.
        """
        if not tensors:
            return
        try:
            self.vision_tower.vision_model.load_state_dict(
                {
                    name.split(TOWER_PREFIX, 1)[1].removeprefix("vision_model."): tensors[name]
                    for name in tensors
                }
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder}: its vision tower does not fit {self.vision_tower_name}", code="tower-mismatch"
            ) from error

    @torch.no_grad()
    def forward(self, images: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Encode (B, 3, S, S) images to (B, P, D) features in the images' dtype; a list gives a list."""
        if not isinstance(images, torch.Tensor):
            return [self._encode(image.unsqueeze(0)) for image in images]
        return self._encode(images)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        if not self.is_loaded:
            raise RuntimeError("the vision tower is used before load_model()")
        depth, pixels = self.depth, images.to(self.device, self.dtype)
        if self.runs_unread_layers or self._is_changed():
            features = self.feature_select(self.vision_tower(pixels, output_hidden_states=True))
        else:
            clip = self.vision_tower.vision_model
            hidden = clip.pre_layrnorm(clip.embeddings(pixels))
            for layer in clip.encoder.layers[:depth]:
                hidden = layer(hidden, None)
            features = self._select_positions(hidden)
        return features.to(images.dtype)

    def feature_select(self, image_forward_outs: BaseModelOutputWithPooling) -> torch.Tensor:
        """Return the features (B, P, D) of the selected layer from outputs that have all hidden states."""
        return self._select_positions(image_forward_outs.hidden_states[self.select_layer])

    def _select_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 1:] if self.select_feature == "patch" else hidden

    def _is_changed(self) -> bool:
        """Whether other code has changed how features are computed, or put another model into the tower."""
        if type(self.vision_tower) is not NestedCLIP or is_replaced(self, "feature_select"):
            return True
        return find_altered(self.vision_tower) is not None

    @property
    def depth(self) -> int:
        """Number of layers to run. Hidden state 0 is the embedding, -1 the last layer's output."""
        layers = self.config.num_hidden_layers
        depth = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer
        if not 0 <= depth <= layers:
            raise CheckpointError(
                f"mm_vision_select_layer is {self.select_layer}, the tower has {layers} layers",
                code="unknown-layer",
            )
        return depth

    @cached_property
    def _config_on_disk(self) -> CLIPVisionConfig:
        return CLIPVisionConfig.from_pretrained(locate(self.vision_tower_name, what="vision tower"))

    @property
    def config(self) -> CLIPVisionConfig:
        return self.vision_tower.config if self.is_loaded else self._config_on_disk

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2

    @property
    def dummy_feature(self) -> torch.Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)
