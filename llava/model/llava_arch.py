"""The image side of the model, as mixins for any language model of transformers.

The path and the class names are the original's, because other code builds on them.
Source: LLaVA v1.2.2 llava_arch.py.
Shapes: B rows, T token ids, L positions with images in place, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn
from transformers import Cache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.anyres import get_anyres_image_grid_shape, merge_tiles
from llava.anyres import unpad_image as unpad_image  # for code that imports it from here
from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import CheckpointError, DataError
from llava.model.fields import image_fields
from llava.model.loading.checkpoint import read_projector
from llava.model.multimodal_encoder.builder import build_vision_tower, load_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.overrides import find_altered, is_replaced
from llava.model.sharded import gather_parameters
from llava.model.splice import Side, SplicedBatch, check_image_count, count_slots, splice
from llava.model.vocabulary import add_image_tokens, load_pretrained_rows

Images = torch.Tensor | Sequence[torch.Tensor]
Sizes = Sequence[tuple[int, int]] | None
MaybeTensor = torch.Tensor | None
Prepared = tuple[MaybeTensor, MaybeTensor, MaybeTensor, Cache | None, MaybeTensor, MaybeTensor]


class VisionFlags(Protocol):
    """Flags of the original's ModelArguments that choose the tower and the projector."""

    vision_tower: str | None
    mm_projector_type: str
    mm_vision_select_layer: int
    mm_vision_select_feature: str
    mm_patch_merge_type: str
    pretrain_mm_mlp_adapter: str | None


class TokenFlags(Protocol):
    """Flags of the original's ModelArguments that choose the image tokens."""

    mm_use_im_patch_token: bool
    mm_use_im_start_end: bool
    tune_mm_mlp_adapter: bool
    pretrain_mm_mlp_adapter: str | None


class LlavaMetaModel:
    """Adds a vision tower and a projector to a language model's layers."""

    # Provided by the language model's class.
    config: PretrainedConfig  # transformers evaluates this annotation
    dtype: torch.dtype
    embed_tokens: nn.Embedding

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.vision_tower: CLIPVisionTower | list[CLIPVisionTower] | None = None
        self.mm_projector: nn.Module | None = None
        if image_fields(config).mm_vision_tower:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self._make_projector()

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """Return the vision tower, or None for a plain language model."""
        tower = self.vision_tower
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(
        self, model_args: VisionFlags, fsdp: Sequence[object] | None = None
    ) -> None:
        """Load the tower, make the projector trainable, and record both in the config.

        Args:
            model_args: The original's ModelArguments, of which this reads vision_tower, mm_projector_type,
                mm_vision_select_layer, mm_vision_select_feature, mm_patch_merge_type and
                pretrain_mm_mlp_adapter.
            fsdp: If not empty, the tower is kept in a list, where FSDP does not shard it.

        Raises:
            CheckpointError: The tower or the pretrained projector does not fit the model.
        """
        config = self.config
        config.mm_vision_tower = model_args.vision_tower
        config.use_mm_proj = True
        config.mm_projector_type = model_args.mm_projector_type or "linear"
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        config.mm_patch_merge_type = model_args.mm_patch_merge_type

        tower = build_vision_tower(config, delay_load=True)
        load_vision_tower(tower, near=[Path(config.name_or_path)] if config.name_or_path else [])
        width = image_fields(config).mm_hidden_size
        if self.mm_projector is not None and width != tower.hidden_size:
            raise CheckpointError(
                f"{model_args.vision_tower}: has {tower.hidden_size} features, the model's projector takes "
                f"{width}: give the vision tower it was trained with",
                code="tower-mismatch",
            )
        config.mm_hidden_size = tower.hidden_size
        self.vision_tower = [tower] if fsdp else tower

        if self.mm_projector is None:
            self._make_projector()
        assert self.mm_projector is not None
        self.mm_projector.requires_grad_(True)  # LoRA freezes it
        if model_args.pretrain_mm_mlp_adapter:
            path = Path(model_args.pretrain_mm_mlp_adapter)
            load_projector(self.mm_projector, read_projector(path), path)

    def _make_projector(self) -> None:
        config = self.config
        self.mm_projector = build_vision_projector(config)
        if image_fields(config).is_unpadded:
            newline = torch.randn(config.hidden_size) / math.sqrt(config.hidden_size)
            self.image_newline = nn.Parameter(newline.to(self.dtype))


class LlavaMetaForCausalLM:
    """Adds image inputs to a causal language model, whose class provides the members declared here."""

    config: PretrainedConfig
    get_input_embeddings: Callable[[], nn.Embedding]
    get_output_embeddings: Callable[[], nn.Linear]

    def get_model(self) -> LlavaMetaModel:
        raise NotImplementedError

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """Return the vision tower, or None for a plain language model."""
        return self.get_model().get_vision_tower()

    @property
    def projector(self) -> nn.Module:
        """The projector of a multimodal model."""
        projector: nn.Module | None = self.get_model().mm_projector
        assert projector is not None
        return projector

    @property
    def image_positions(self) -> int:
        """Number of positions that an image of one view takes in a sequence; 1 without a tower."""
        tower = self.get_vision_tower()
        if tower is None:
            return 1
        return (
            tower.num_patches + (tower.select_feature == "cls_patch") + image_fields(self.config).is_unpadded
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, S, S) images to projected features (N, P, D)."""
        return self._project(self._require_tower()(images))

    def _require_tower(self) -> CLIPVisionTower:
        tower = self.get_vision_tower()
        if tower is None or not tower.is_loaded:
            raise CheckpointError(
                "images were given to a model without a vision tower, or with one not loaded",
                code="tower-not-loaded",
            )
        return tower

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        weight = next(self.projector.parameters(), features)
        projected: torch.Tensor = self.projector(features.to(weight.device, weight.dtype))
        return projected

    def encode_views(
        self, images: Images, image_sizes: Sizes = None, at_a_time: int | None = None
    ) -> list[torch.Tensor]:
        """Encode each image to one (P, D) block.

        Args:
            images: (B, 3, S, S); or images of several views as (B, views, 3, S, S) or a list.
            image_sizes: (width, height) of each original image, for `mm_patch_merge_type` spatial.
            at_a_time: The most views of images in tiles that go through the tower together; None for all.

        Raises:
            CheckpointError: The config's `mm_patch_merge_type` is unknown or does not suit the images.
            DataError: `image_sizes` are needed but missing.
        """
        if isinstance(images, torch.Tensor) and images.ndim == 4:
            return list(self.encode_images(images))
        views = [image if image.ndim == 4 else image.unsqueeze(0) for image in images]
        together = torch.cat(views)
        parts = [self.encode_images(part) for part in together.split(at_a_time or len(together))]
        encoded = torch.cat(parts).split([len(view) for view in views])
        kind = image_fields(self.config).mm_patch_merge_type or "flat"
        if kind == "flat":
            return [features.flatten(0, 1) for features in encoded]
        if not kind.startswith("spatial"):
            raise CheckpointError(
                f"mm_patch_merge_type is {kind!r}; there are flat, spatial and spatial_unpad",
                code="unknown-merge-type",
            )
        if image_sizes is None or len(image_sizes) != len(encoded):
            raise DataError(
                f"mm_patch_merge_type {kind} needs image_sizes, one for each of {len(encoded)} images",
                code="missing-image-sizes",
            )
        return [self._merge(features, size) for features, size in zip(encoded, image_sizes, strict=True)]

    def _merge(self, features: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Merge the (views, P, D) features of one image into one block."""
        fields, tower = image_fields(self.config), self.get_vision_tower()
        newline = self.get_model().image_newline if fields.is_unpadded else None
        if len(features) == 1:
            return features[0] if newline is None else torch.cat((features[0], newline[None].to(features)))
        if fields.image_aspect_ratio != "anyres" or tower is None:
            raise CheckpointError(
                f"an image in tiles needs image_aspect_ratio anyres, config.json has "
                f"{fields.image_aspect_ratio!r}",
                code="not-anyres",
            )
        grid = get_anyres_image_grid_shape(image_size, fields.image_grid_pinpoints, tower.config.image_size)
        return merge_tiles(features, grid, image_size, newline)

    def splice_images(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        images: Images,
        image_sizes: Sizes = None,
        *,
        max_length: int | None = None,
        side: Side | None = None,
    ) -> SplicedBatch:
        """Put image features into token embeddings; see `splice`.

        Rows are padded on `side`, by default the config's `tokenizer_padding_side`.
        """
        on_left = image_fields(self.config).tokenizer_padding_side == "left"
        return splice(
            input_ids,
            labels,
            attention_mask,
            self.get_model().embed_tokens,
            self.encode_views(images, image_sizes),
            max_length=max_length,
            side=side or ("left" if on_left else "right"),
        )

    def encode_nonblank_views(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        images: Images,
        image_sizes: Sizes = None,
    ) -> list[torch.Tensor]:
        """Encode images as `encode_views` does, but skip the blank images of rows without a slot.

        A skipped image's block is the projector's output on zero positions, so that the projector's gradients
        are zero and not None, as with the blank image.

        Raises:
            DataError: The numbers of images and image slots differ.
        """
        slots = count_slots(input_ids, attention_mask)
        check_image_count(slots, len(images))
        is_used = [used for count in slots for used in ([True] * count or [False])]
        is_changed = is_replaced(self, "encode_images") or find_altered(self.projector) is not None
        # With unpadded tiles even a blank image gives `image_newline` a gradient.
        if all(is_used) or is_changed or image_fields(self.config).is_unpadded:
            return self.encode_views(images, image_sizes)
        indices = [index for index, used in enumerate(is_used) if used]
        blocks: Iterator[torch.Tensor] = iter(())
        if indices:
            chosen = images[indices] if isinstance(images, torch.Tensor) else [images[i] for i in indices]
            blocks = iter(self.encode_views(chosen, image_sizes and [image_sizes[i] for i in indices]))
        empty = self._project(self._require_tower().dummy_feature[:0])
        return [next(blocks) if used else empty for used in is_used]

    @property
    def has_other_splice(self) -> bool:
        """Whether other code has replaced how images get into the sequence, and must be called for it."""
        methods = ("prepare_inputs_labels_for_multimodal", "splice_images")
        return any(is_replaced(self, name) for name in methods)

    # Compatibility: kept for code that imports, calls or replaces the original's name.
    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sizes = None,
    ) -> Prepared:
        """Return (ids, position_ids, mask, past, embeds, labels) for the language model.

        Source: LLaVA v1.2.2 llava_arch.py, the method of this name.

        Without images, or with a single id that continues a cached sequence, the ids come back unchanged and
        embeds are None. Otherwise ids are None, and rows are cut at `tokenizer_model_max_length`. Mask,
        positions and labels that were given as None come back as None.
        """
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        longest = image_fields(self.config).tokenizer_model_max_length
        spliced = self.splice_images(
            input_ids, labels, attention_mask, images, image_sizes, max_length=longest
        )
        return (
            None,
            None if position_ids is None else spliced.position_ids,
            None if attention_mask is None else spliced.mask.to(attention_mask.dtype),
            past_key_values,
            spliced.embeds,
            None if labels is None else spliced.labels,
        )

    def initialize_vision_tokenizer(self, model_args: TokenFlags, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the image tokens that the flags ask for, and set which embedding tables are trained.

        Args:
            model_args: The original's ModelArguments, of which this reads mm_use_im_patch_token,
                mm_use_im_start_end, tune_mm_mlp_adapter and pretrain_mm_mlp_adapter (a file with the new
                tokens' rows).
            tokenizer: Gets the new tokens.
        """
        start_end, adapter_only = model_args.mm_use_im_start_end, model_args.tune_mm_mlp_adapter
        model = cast(PreTrainedModel, self)
        add_image_tokens(model, tokenizer, patch=model_args.mm_use_im_patch_token, start_end=start_end)
        if adapter_only and (start_end or model_args.mm_use_im_patch_token):
            self.get_input_embeddings().requires_grad_(bool(start_end))
            self.get_output_embeddings().requires_grad_(False)
        if start_end and model_args.pretrain_mm_mlp_adapter:
            load_pretrained_rows(model, Path(model_args.pretrain_mm_mlp_adapter))


def require_images_for_slots(input_ids: torch.Tensor, images: Images | None) -> None:
    """Raise a `DataError` if the ids have image slots but no images were given."""
    slots = int((input_ids == IMAGE_TOKEN_INDEX).sum()) if images is None else 0
    if slots:
        raise DataError(
            f"{slots} image slots but 0 images: give the images, or take <image> out of the text",
            code="image-count",
        )


def load_projector(projector: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Load tensors into the projector.

    Raises:
        CheckpointError: The names or shapes of `tensors` are not the projector's.
    """
    try:
        with gather_parameters(projector.parameters(), to_change=True):
            projector.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"{source}: does not fit this model's projector: {reason}", code="projector-mismatch"
        ) from error
