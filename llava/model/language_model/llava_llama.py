"""LLaVA on LLaMA, with the original's class names and state-dict keys.

Source: LLaVA v1.2.2 llava_llama.py.
Shapes: B rows, T token ids, L positions with images in place, V vocabulary.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, overload

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from llava.constants import IGNORE_INDEX
from llava.errors import CheckpointError, DataError
from llava.model.fields import IMAGE_FIELDS, image_fields
from llava.model.llava_arch import (
    Images,
    LlavaMetaForCausalLM,
    LlavaMetaModel,
    Sizes,
    require_images_for_slots,
)
from llava.model.packed_attention import segment_arguments
from llava.model.recipe import Recipe
from llava.model.splice import splice, splice_packed
from llava.schema import JsonObject

if TYPE_CHECKING:
    from transformers.generation.utils import GenerateOutput

# Training starts from `llama`; checkpoints from before 2024 have the type `llava`.
READABLE_TYPES = ("llava_llama", "llava", "llama")


class LoadReport(TypedDict):
    """What transformers reports of loading weights, as far as we read it."""

    missing_keys: set[str]
    unexpected_keys: set[str]


class LlavaConfig(LlamaConfig):
    """LLaMA's config. It has those of `ImageFields`, and any others, that its checkpoint has."""

    model_type = "llava_llama"

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: object
    ) -> tuple[JsonObject, dict[str, object]]:
        """Return the fields of config.json, with our model type in place of any in `READABLE_TYPES`.

        Raises:
            CheckpointError: There is no config.json, or it is of another kind of model.
        """
        try:
            fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            fields, rest = {}, {}
        if not fields:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: has no config.json that can be read", code="missing-config"
            )
        kind = fields.get("model_type", "llama")
        where = f"{pretrained_model_name_or_path}: config.json"
        if "text_config" in fields:
            raise CheckpointError(
                f"{where} is in Hugging Face's own LLaVA format (it has text_config); wanted the "
                "original's, such as liuhaotian/llava-v1.5-7b",
                code="huggingface-format",
            )
        if kind not in READABLE_TYPES:
            raise CheckpointError(
                f"{where} has model_type {kind!r}; wanted one of {', '.join(READABLE_TYPES)}",
                code="unknown-model-type",
            )
        return {**fields, "model_type": cls.model_type}, rest

    def to_diff_dict(self) -> JsonObject:
        """Return what to write to config.json: our fields that are set, and two that transformers 4 needs."""
        fields = super().to_diff_dict()
        # The original asks whether a field exists, not whether it is null.
        fields = {
            name: value for name, value in fields.items() if value is not None or name not in IMAGE_FIELDS
        }
        rope = self.rope_parameters or {}
        if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        if "dtype" in fields:
            fields["torch_dtype"] = fields["dtype"]
        return fields


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """LLaMA's layers with a vision tower and a projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """LLaMA that reads images: `forward` and `generate` accept images besides token ids."""

    config_class = LlavaConfig
    # As in the original, losses of micro-batches are averaged: the trainer must not weight them by tokens.
    accepts_loss_kwargs = False
    # The tower is loaded from `mm_vision_tower`. Old checkpoints also hold tables of rotary angles.
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\.", r"rotary_emb\.inv_freq"]  # noqa: RUF012

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @overload
    @classmethod
    def from_pretrained(
        cls, *args: object, output_loading_info: Literal[False] = ..., **kwargs: object
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, *args: object, output_loading_info: Literal[True], **kwargs: object
    ) -> tuple[Self, LoadReport]: ...

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> object:
        """Load a model as transformers 5 does, but `torch_dtype=None` in float32, as transformers 4 does.

        The original's train() passes it. transformers 5 takes it for the checkpoint's precision, in which a
        full fine-tuning of float16 weights ends in NaN. `dtype=None` means what it does there.
        """
        if "torch_dtype" in kwargs and kwargs["torch_dtype"] is None and "quantization_config" not in kwargs:
            kwargs["torch_dtype"] = torch.float32
        return super().from_pretrained(*args, **kwargs)

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: Sizes = None,
        logits_to_keep: int | torch.Tensor = 0,
        recipe: Recipe | None = None,
        supervised: torch.Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Compute logits (B, L, V) and, given labels, the loss of `next_token_loss`.

        Given a `recipe`, which needs labels, compute the same loss with the recipe's shortcuts and return no
        logits. `supervised`, () int64, is the number of supervised labels in the whole batch; None counts
        those of these rows.

        With labels, rows are cut at `tokenizer_model_max_length`; without labels they are never cut.
        `position_ids` must be a named parameter: `generate` makes them from the mask only if the signature
        has them.

        Raises:
            DataError: The numbers of images and image slots differ.
        """
        if recipe is not None:
            assert input_ids is not None
            assert labels is not None
            rows = (input_ids, attention_mask, labels, images, image_sizes)
            return CausalLMOutputWithPast(loss=self._loss_by_recipe(*rows, recipe, supervised))
        if inputs_embeds is None and input_ids is not None and self.has_other_splice:
            given = (input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes)
            prepared = self.prepare_inputs_labels_for_multimodal(*given)
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = prepared
        elif inputs_embeds is None and input_ids is not None and input_ids.shape[1] > 1:
            require_images_for_slots(input_ids, images)
            if images is not None:
                longest = None if labels is None else image_fields(self.config).tokenizer_model_max_length
                spliced = self.splice_images(
                    input_ids, labels, attention_mask, images, image_sizes, max_length=longest
                )
                input_ids, inputs_embeds, attention_mask = None, spliced.embeds, spliced.mask
                position_ids = None if position_ids is None else spliced.position_ids
                labels = None if labels is None else spliced.labels
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if labels is not None:
            output.loss = next_token_loss(output.logits, labels)
        return output

    def _loss_by_recipe(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        images: Images | None,
        image_sizes: Sizes,
        recipe: Recipe,
        supervised: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.has_other_splice:
            given = (input_ids, None, attention_mask, None, labels, images, image_sizes)
            ids, positions, mask, _, embeds, prepared = self.prepare_inputs_labels_for_multimodal(*given)
            assert prepared is not None
            labels = prepared
            embeds = self.get_input_embeddings()(ids) if embeds is None else embeds
            settings: dict[str, object] = {"attention_mask": mask, "position_ids": positions}
        else:
            embeds, labels, settings = self._splice_by_recipe(
                input_ids, attention_mask, labels, images, image_sizes, recipe
            )
        hidden = self.model(inputs_embeds=embeds, use_cache=False, **settings).last_hidden_state
        if recipe.sparse_loss:
            return supervised_loss(hidden, labels, self.lm_head, supervised)
        return next_token_loss(self.lm_head(hidden), labels, supervised)

    def _splice_by_recipe(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        images: Images | None,
        image_sizes: Sizes,
        recipe: Recipe,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, object]]:
        """Return embeddings (B, L, D), labels (B, L) and what the language model needs to attend by."""
        require_images_for_slots(input_ids, images)
        if images is None:
            features = self._make_empty_features(len(input_ids))
        elif recipe.skip_blank_images:
            features = self.encode_nonblank_views(input_ids, attention_mask, images, image_sizes)
        else:
            features = self.encode_views(images, image_sizes)
        longest = None if images is None else image_fields(self.config).tokenizer_model_max_length
        rows = (input_ids, labels, attention_mask, self.get_input_embeddings(), features)
        if not recipe.pack:
            padded = splice(*rows, max_length=longest)
            return padded.embeds, padded.labels, {"attention_mask": padded.mask}
        packed = splice_packed(*rows, max_length=longest)
        settings = {
            "position_ids": packed.position_ids,
            **segment_arguments(packed.lengths, self.config._attn_implementation, packed.embeds.device),
        }
        return packed.embeds, packed.labels, settings

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sizes = None,
        **kwargs: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate from text with or without images. Returns the new tokens only, without a leading BOS.

        Rows of different lengths need an `attention_mask`, and may be padded on either side. `inputs_embeds`
        go to the language model unchanged. Other arguments are those of transformers' `generate`.

        Raises:
            DataError: The numbers of images and image slots differ, or a prompt exceeds the context length.
        """
        if inputs is None:
            if images is not None:
                raise DataError(
                    "images were given to generate() without the token ids they belong to",
                    code="images-without-ids",
                )
            return super().generate(**kwargs)
        if "inputs_embeds" in kwargs:
            raise DataError("generate() takes token ids or inputs_embeds, not both", code="ids-and-embeds")
        mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        if images is not None and self.has_other_splice:
            given = (inputs, positions, mask, None, None, images, image_sizes)
            ids, positions, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(*given)
            if embeds is not None:
                self._check_prompt_fits(embeds.shape[1])
            if positions is not None:
                kwargs["position_ids"] = positions
            return super().generate(ids, attention_mask=mask, inputs_embeds=embeds, **kwargs)
        # Without `positions`, which count without images; generate() makes them from the mask.
        require_images_for_slots(inputs, images)
        if images is None:
            empty = self._make_empty_features(len(inputs))
            spliced = splice(inputs, None, mask, self.get_input_embeddings(), empty, side="left")
        else:
            spliced = self.splice_images(inputs, None, mask, images, image_sizes, side="left")
        self._check_prompt_fits(spliced.embeds.shape[1])
        return super().generate(inputs_embeds=spliced.embeds, attention_mask=spliced.mask.long(), **kwargs)

    def save_pretrained(self, *args: object, **kwargs: object) -> None:
        """Write the model, also with vicuna-v1.5's generation config, which samples but lacks `do_sample`."""
        generation = self.generation_config
        if generation is not None and (generation.temperature is not None or generation.top_p is not None):
            generation.do_sample = True
        super().save_pretrained(*args, **kwargs)

    def _make_empty_features(self, rows: int) -> list[torch.Tensor]:
        """Return the blocks that `splice` needs for rows without images: one empty block per row."""
        weight = self.get_input_embeddings().weight  # FSDP's shard of it would make an empty shard
        return [torch.empty(0, self.config.hidden_size, dtype=weight.dtype, device=weight.device)] * rows

    def _check_prompt_fits(self, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            raise DataError(
                f"a prompt is {length} positions long with its images, the model reads {longest}: shorten "
                "the text; it is not cut automatically, because its end asks for the answer",
                code="prompt-too-long",
            )


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, supervised: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy of each position's logits against the next position's label.

    Labels of -100 are ignored. If all are, loss and gradients are 0 (the original's are NaN, which bf16
    training then keeps in the weights).

    Args:
        logits: (B, L, V), converted to float32.
        labels: (B, L).
        supervised: The number of supervised labels to divide by, if these rows are a part of a batch; None
            counts those of these rows.
    """
    return _mean_cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), supervised)


def supervised_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, supervised: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `next_token_loss`, computing logits only where the next label is supervised.

    Args:
        hidden: (B, L, D) hidden states.
        labels: (B, L).
        head: Maps (N, D) hidden states to (N, V) logits.
        supervised: As in `next_token_loss`.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    indices = (targets != IGNORE_INDEX).nonzero()[:, 0]
    logits = head(hidden.flatten(0, 1).index_select(0, indices))
    return _mean_cross_entropy(logits, targets[indices], supervised)


def _mean_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, supervised: torch.Tensor | None
) -> torch.Tensor:
    targets = targets.to(logits.device)
    total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / ((targets != IGNORE_INDEX).sum() if supervised is None else supervised).clamp(min=1)


# `llava` is not registered, because transformers has its own class of that name.
AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
