"""LLaVA on LLaMA, under the original's class names and state-dict keys.

B rows, T token ids, L positions once images are in, V the vocabulary. Source: LLaVA v1.2.2 llava_llama.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from llava.constants import IGNORE_INDEX
from llava.errors import CheckpointError, DataError
from llava.model.llava_arch import (
    Images,
    LlavaMetaForCausalLM,
    LlavaMetaModel,
    Sizes,
    require_images_for_slots,
)
from llava.model.packed_attention import segment_arguments
from llava.model.shortcuts import Shortcuts
from llava.model.splice import splice, splice_packed

# LLaMA itself is what training starts from; `llava` is what checkpoints of before 2024 call themselves.
READABLE_TYPES = ("llava_llama", "llava", "llama")


class LlavaConfig(LlamaConfig):
    """LLaMA's fields and those of the image side, None where a checkpoint leaves a field out.

    Fields not listed here are kept as they are read, and written back.
    """

    model_type = "llava_llama"

    mm_vision_tower: str | None = None  # its presence makes the model multimodal
    mm_hidden_size: int | None = None
    mm_projector_type: str | None = None  # None: linear
    mm_vision_select_layer: int | None = None
    mm_vision_select_feature: str | None = None  # None: patch
    mm_patch_merge_type: str | None = None  # None: flat
    mm_use_im_start_end: bool | None = None
    mm_use_im_patch_token: bool | None = None
    use_mm_proj: bool | None = None
    unfreeze_mm_vision_tower: bool | None = None
    tune_mm_mlp_adapter: bool | None = None
    freeze_mm_mlp_adapter: bool | None = None
    mm_projector_lr: float | None = None
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: Any = None
    tokenizer_model_max_length: int | None = None
    tokenizer_padding_side: str | None = None
    max_sequence_length: int | None = None

    @property
    def is_unpadded(self) -> bool:
        """Whether tiles are put back without their padding, each row ending in `image_newline`."""
        return "unpad" in (self.mm_patch_merge_type or "")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """The fields in config.json, whichever of our names the model type has there.

        Raises:
            CheckpointError: It is another kind of model.
        """
        try:
            fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError:
            fields, rest = {}, {}
        if not fields:
            raise CheckpointError(f"{pretrained_model_name_or_path}: has no config.json that can be read")
        kind = fields.get("model_type", "llama")
        where = f"{pretrained_model_name_or_path}: config.json"
        if "text_config" in fields:
            raise CheckpointError(
                f"{where} is in Hugging Face's own LLaVA format (it has text_config); wanted the "
                "original's, such as liuhaotian/llava-v1.5-7b"
            )
        if kind not in READABLE_TYPES:
            raise CheckpointError(
                f"{where} has model_type {kind!r}; wanted one of {', '.join(READABLE_TYPES)}"
            )
        return {**fields, "model_type": cls.model_type}, rest

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: our fields that are set, and two that transformers 4 looks for."""
        fields = super().to_diff_dict()
        ours = LlavaConfig.__annotations__
        # Readers of the original ask whether a field exists, not whether it is null.
        fields = {name: value for name, value in fields.items() if value is not None or name not in ours}
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
    """LLaMA that reads images: `forward` and `generate` take them beside token ids."""

    config_class = LlavaConfig
    # The mean of micro-batch means, as the original trains: the trainer must not rescale by token counts.
    accepts_loss_kwargs = False
    # The tower is read from `mm_vision_tower`; old checkpoints hold tables of rotary angles.
    _keys_to_ignore_on_load_unexpected = [r"vision_tower\.", r"rotary_emb\.inv_freq"]  # noqa: RUF012

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: Sizes = None,
        logits_to_keep: int | torch.Tensor = 0,
        shortcuts: Shortcuts | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, V) and, given labels, the loss of `next_token_loss`.

        With `shortcuts`, which need labels, the same loss without logits.

        `position_ids` must stay a named parameter: `generate` inspects the signature and makes them from the
        mask only if it finds them here. With labels, rows are cut at `tokenizer_model_max_length`; without
        labels nothing is ever cut.

        Raises:
            DataError: Images and image slots do not match in number.
        """
        if shortcuts is not None:
            return CausalLMOutputWithPast(
                loss=self._shortened_loss(input_ids, attention_mask, labels, images, image_sizes, shortcuts)
            )
        if inputs_embeds is None and input_ids is not None and input_ids.shape[1] > 1:
            require_images_for_slots(input_ids, images)
            if images is not None:
                longest = None if labels is None else self.config.tokenizer_model_max_length
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

    def _shortened_loss(
        self,
        input_ids: Any,
        attention_mask: torch.Tensor | None,
        labels: Any,
        images: Images | None,
        image_sizes: Sizes,
        shortcuts: Shortcuts,
    ) -> torch.Tensor:
        require_images_for_slots(input_ids, images)
        if images is None:
            nothing = self.get_input_embeddings().weight.new_empty(0, self.config.hidden_size)
            features = [nothing] * len(input_ids)
        elif shortcuts.skip_blank_images:
            features = self.encode_nonblank_views(input_ids, attention_mask, images, image_sizes)
        else:
            features = self.encode_views(images, image_sizes)
        longest = None if images is None else self.config.tokenizer_model_max_length
        rows = (input_ids, labels, attention_mask, self.get_input_embeddings(), features)
        if shortcuts.pack:
            packed = splice_packed(*rows, max_length=longest)
            embeds, labels = packed.embeds, packed.labels
            settings = {
                "position_ids": packed.position_ids,
                **segment_arguments(packed.lengths, self.config._attn_implementation, embeds.device),
            }
        else:
            padded = splice(*rows, max_length=longest)
            embeds, labels, settings = padded.embeds, padded.labels, {"attention_mask": padded.mask}
        hidden = self.model(inputs_embeds=embeds, use_cache=False, **settings).last_hidden_state
        if shortcuts.sparse_loss:
            return supervised_loss(hidden, labels, self.lm_head, shortcuts.supervised)
        return next_token_loss(self.lm_head(hidden), labels, shortcuts.supervised)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sizes = None,
        **kwargs: Any,
    ) -> Any:
        """The new tokens only, without a leading BOS, for text with or without images.

        Rows of unequal length need an `attention_mask`; on which side they are padded does not matter here.
        `inputs_embeds` go to the language model as they are. All else is as in transformers' `generate`.

        Raises:
            DataError: Images and image slots differ in number, or a prompt is longer than the model reads.
        """
        if inputs is None:
            if images is not None:
                raise DataError("images were given to generate() without the token ids they belong to")
            return super().generate(**kwargs)
        if "inputs_embeds" in kwargs:
            raise DataError("generate() takes token ids or inputs_embeds, not both")
        mask = kwargs.pop("attention_mask", None)
        kwargs.pop("position_ids", None)  # of the text without images; made anew from the mask
        require_images_for_slots(inputs, images)
        if images is None:
            embed = self.get_input_embeddings()
            nothing = [embed.weight.new_empty(0, self.config.hidden_size)] * len(inputs)
            spliced = splice(inputs, None, mask, embed, nothing, side="left")
        else:
            spliced = self.splice_images(inputs, None, mask, images, image_sizes, side="left")
        self._check_prompt_fits(spliced.embeds.shape[1])
        return super().generate(inputs_embeds=spliced.embeds, attention_mask=spliced.mask.long(), **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the model. Sampling settings that vicuna-v1.5 ships without `do_sample` no longer stop it."""
        settings = self.generation_config
        if settings is not None and (settings.temperature is not None or settings.top_p is not None):
            settings.do_sample = True
        super().save_pretrained(*args, **kwargs)

    def _check_prompt_fits(self, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            raise DataError(
                f"a prompt is {length} positions long with its images, the model reads {longest}: shorten "
                "the text, it is not cut here because the end of a prompt is what asks for the answer"
            )


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, supervised: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy of each position's logits against the next position's label.

    Labels of -100 do not count. Where none counts the loss is 0, with gradients of 0: a batch that trains
    nothing (the original gives NaN there, which bf16 training then keeps in the weights).

    Args:
        logits: (B, L, V); computed with in float32.
        labels: (B, L).
        supervised: How many labels count in the batch that these rows are of; None if they are all of it.
    """
    return _mean_cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), supervised)


def supervised_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, supervised: torch.Tensor | None = None
) -> torch.Tensor:
    """As `next_token_loss`, with logits computed only where the next label counts.

    Args:
        hidden: (B, L, D), of which `head` makes logits.
        labels: (B, L).
        head: (N, D) to (N, V).
        supervised: As there.
    """
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    places = (wanted != IGNORE_INDEX).nonzero()[:, 0]
    return _mean_cross_entropy(head(hidden.flatten(0, 1).index_select(0, places)), wanted[places], supervised)


def _mean_cross_entropy(
    logits: torch.Tensor, wanted: torch.Tensor, supervised: torch.Tensor | None
) -> torch.Tensor:
    wanted = wanted.to(logits.device)
    total = F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / ((wanted != IGNORE_INDEX).sum() if supervised is None else supervised).clamp(min=1)


# `llava` is not registered: transformers has a class of its own under that name.
AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
