"""The image side of the model: what it adds to a language model, whichever that is.

Kept under the original's path and class names, for those who build on them.
Source: LLaVA v1.2.2 llava_arch.py. B rows, T token ids, L positions once images are in, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.anyres import get_anyres_image_grid_shape, merge_tiles
from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import CheckpointError, DataError
from llava.model.loading.checkpoint import read_projector
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.splice import Side, SplicedBatch, check_image_count, count_slots, splice
from llava.model.vocabulary import add_image_tokens, load_pretrained_rows
from llava.model.zero3 import gather_parameters

Images = torch.Tensor | Sequence[torch.Tensor]
Sizes = Sequence[tuple[int, int]] | None


class LlavaMetaModel:
    """Vision tower and projector beside a language model's layers."""

    # Of the language model's class beside it.
    config: Any
    dtype: torch.dtype

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.vision_tower: CLIPVisionTower | list[CLIPVisionTower] | None = None
        self.mm_projector: nn.Module | None = None
        if config.mm_vision_tower:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self._make_projector()

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower, None for a model of text alone."""
        tower = self.vision_tower
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[Any] | None = None) -> None:
        """Load the tower, make the projector trainable, and write into the config what they are.

        Args:
            model_args: Upstream's ModelArguments: vision_tower, mm_projector_type, mm_vision_select_layer,
                mm_vision_select_feature, mm_patch_merge_type, pretrain_mm_mlp_adapter.
            fsdp: If not empty the tower is hidden in a list, so that FSDP does not shard it.
        """
        config = self.config
        config.mm_vision_tower = model_args.vision_tower
        config.use_mm_proj = True
        config.mm_projector_type = model_args.mm_projector_type or "linear"
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        config.mm_patch_merge_type = model_args.mm_patch_merge_type

        tower = build_vision_tower(config, delay_load=True)
        tower.load_model(near=[Path(config.name_or_path)] if config.name_or_path else [])
        if self.mm_projector is not None and config.mm_hidden_size != tower.hidden_size:
            raise CheckpointError(
                f"{model_args.vision_tower}: has {tower.hidden_size} features, the model's projector takes "
                f"{config.mm_hidden_size}: give the vision tower it was trained with"
            )
        config.mm_hidden_size = tower.hidden_size
        self.vision_tower = [tower] if fsdp else tower

        if self.mm_projector is None:
            self._make_projector()
        assert self.mm_projector is not None
        self.mm_projector.requires_grad_(True)  # LoRA has frozen it
        if model_args.pretrain_mm_mlp_adapter:
            path = Path(model_args.pretrain_mm_mlp_adapter)
            load_projector(self.mm_projector, read_projector(path), path)

    def _make_projector(self) -> None:
        config = self.config
        self.mm_projector = build_vision_projector(config)
        if config.is_unpadded:
            newline = torch.randn(config.hidden_size) / math.sqrt(config.hidden_size)
            self.image_newline = nn.Parameter(newline.to(self.dtype))


class LlavaMetaForCausalLM:
    """Images into a causal language model. The class beside it gives what is declared here."""

    config: Any
    get_input_embeddings: Callable[[], nn.Embedding]
    get_output_embeddings: Callable[[], nn.Linear]

    def get_model(self) -> Any:
        raise NotImplementedError

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower, None for a model of text alone."""
        return self.get_model().get_vision_tower()

    @property
    def image_positions(self) -> int:
        """Positions that an image of one view takes among the words; 1 without a tower."""
        tower = self.get_vision_tower()
        if tower is None:
            return 1
        return tower.num_patches + (tower.select_feature == "cls_patch") + self.config.is_unpadded

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Projected features of (N, 3, S, S) images: (N, P, D)."""
        return self._project(self._loaded_tower()(images))

    def _loaded_tower(self) -> CLIPVisionTower:
        tower = self.get_vision_tower()
        if tower is None or not tower.is_loaded:
            raise CheckpointError(
                "images were given to a model without a vision tower, or with one not loaded"
            )
        return tower

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        projector = self.get_model().mm_projector
        weight = next(projector.parameters(), features)
        return projector(features.to(weight.device, weight.dtype))

    def encode_views(self, images: Images, image_sizes: Sizes = None) -> list[torch.Tensor]:
        """One (P, D) block an image.

        Args:
            images: (B, 3, S, S); or (B, views, 3, S, S) or a list, an image with several views or one.
            image_sizes: (width, height) of each original image, for `mm_patch_merge_type` spatial.
        """
        if isinstance(images, torch.Tensor) and images.ndim == 4:
            return list(self.encode_images(images))
        views = [image if image.ndim == 4 else image.unsqueeze(0) for image in images]
        encoded = self.encode_images(torch.cat(views)).split([len(image) for image in views])
        kind = self.config.mm_patch_merge_type or "flat"
        if kind == "flat":
            return [features.flatten(0, 1) for features in encoded]
        if not kind.startswith("spatial"):
            raise CheckpointError(
                f"mm_patch_merge_type is {kind!r}; there are flat, spatial and spatial_unpad"
            )
        if image_sizes is None or len(image_sizes) != len(encoded):
            raise DataError(
                f"mm_patch_merge_type {kind} needs image_sizes, one for each of {len(encoded)} images"
            )
        return [self._merge(features, size) for features, size in zip(encoded, image_sizes, strict=True)]

    def _merge(self, features: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """(views, P, D) of one image as one block."""
        config, tower = self.config, self.get_vision_tower()
        newline = self.get_model().image_newline if config.is_unpadded else None
        if len(features) == 1:
            return features[0] if newline is None else torch.cat((features[0], newline[None].to(features)))
        if config.image_aspect_ratio != "anyres" or tower is None:
            raise CheckpointError(
                f"an image in tiles needs image_aspect_ratio anyres, config.json has "
                f"{config.image_aspect_ratio!r}"
            )
        grid = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, tower.config.image_size)
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
        """The images' features among the words' embeddings; see `splice`.

        Padding goes to `side`, by default the config's `tokenizer_padding_side`.
        """
        return splice(
            input_ids,
            labels,
            attention_mask,
            self.get_model().embed_tokens,
            self.encode_views(images, image_sizes),
            max_length=max_length,
            side=side or self.config.tokenizer_padding_side or "right",
        )

    def encode_nonblank_views(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        images: Images,
        image_sizes: Sizes = None,
    ) -> list[torch.Tensor]:
        """As `encode_views`, but the blank image of a row without slots does not go through the tower.

        Its block is the projector's output on no positions at all: gradients of zero (not None) as before.

        Raises:
            DataError: Images and image slots do not match in number.
        """
        slots = count_slots(input_ids, attention_mask)
        check_image_count(slots, len(images))
        is_shown = [shown for count in slots for shown in ([True] * count or [False])]
        if (
            all(is_shown) or self.config.is_unpadded
        ):  # there `image_newline` has a gradient from blank ones, too
            return self.encode_views(images, image_sizes)
        places = [place for place, shown in enumerate(is_shown) if shown]
        blocks: Iterator[torch.Tensor] = iter(())
        if places:
            chosen = (
                images[places] if isinstance(images, torch.Tensor) else [images[place] for place in places]
            )
            blocks = iter(self.encode_views(chosen, image_sizes and [image_sizes[place] for place in places]))
        nothing = self._project(self._loaded_tower().dummy_feature[:0])
        return [next(blocks) if shown else nothing for shown in is_shown]

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sizes = None,
    ) -> tuple[Any, ...]:
        """(ids, position_ids, mask, past, embeds, labels) for the language model, as the original gives them.

        Ids come back unchanged, with embeds None, where there is nothing to splice: no images, or one id that
        continues a cached sequence. Otherwise ids are None and rows are cut at `tokenizer_model_max_length`;
        mask, positions and labels come back as None if they came in as None.
        """
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        longest = self.config.tokenizer_model_max_length
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

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add the image tokens that the flags ask for, and set which embedding tables are trained.

        Args:
            model_args: mm_use_im_patch_token, mm_use_im_start_end, tune_mm_mlp_adapter,
                pretrain_mm_mlp_adapter (read for the new rows).
            tokenizer: Gets the new tokens.
        """
        start_end, adapter_only = model_args.mm_use_im_start_end, model_args.tune_mm_mlp_adapter
        add_image_tokens(self, tokenizer, patch=model_args.mm_use_im_patch_token, start_end=start_end)
        if adapter_only and (start_end or model_args.mm_use_im_patch_token):
            self.get_input_embeddings().requires_grad_(bool(start_end))
            self.get_output_embeddings().requires_grad_(False)
        if start_end and model_args.pretrain_mm_mlp_adapter:
            load_pretrained_rows(self, Path(model_args.pretrain_mm_mlp_adapter))


def require_images_for_slots(input_ids: torch.Tensor, images: Images | None) -> None:
    """Raise a `DataError` if text refers to images that were not given."""
    slots = int((input_ids == IMAGE_TOKEN_INDEX).sum()) if images is None else 0
    if slots:
        raise DataError(f"{slots} image slots but 0 images: give the images, or take <image> out of the text")


def load_projector(projector: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Fill the projector with exactly the tensors it has.

    Raises:
        CheckpointError: `tensors` has other names or shapes.
    """
    try:
        with gather_parameters(projector.parameters(), to_change=True):
            projector.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: does not fit this model's projector: {_last_line(error)}"
        ) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
