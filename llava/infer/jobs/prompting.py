"""Turn a question into the prompt a model was trained on: template, image token, template by model name.

Needs no torch. Source of the rules: LLaVA v1.2.2 llava/eval/model_vqa.py, run_llava.py.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

# First match in the lower-cased model name wins.
_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)


def template(conv_mode: str, model_name: str) -> str:
    """Return the template that `conv_mode` names, or its `_mmtag` version for a pre-trained `plain` model.

    Raises:
        SettingsError: There is no such template; the message lists those there are.
    """
    if conv_mode not in conv_templates:
        raise SettingsError(
            f"--conv-mode {conv_mode!r}: no such template; there are: {', '.join(sorted(conv_templates))}",
            code="unknown-template",
        )
    is_plain = "plain" in model_name and "finetune" not in model_name.lower() and "mmtag" not in conv_mode
    tagged = f"{conv_mode}_mmtag"
    if is_plain and tagged in conv_templates:
        logger.info(f"{model_name} is a plain model: template {tagged} in place of {conv_mode}")
        return tagged
    return conv_mode


def template_for_chat(conv_mode: str | None, model_name: str) -> str:
    """Return the template for a chat: `conv_mode` if given, else the one the model's name suggests."""
    lowered = model_name.lower()
    suggested = next((name for part, name in _BY_NAME if part in lowered), "llava_v0")
    if conv_mode is None:
        return template(suggested, "")
    if conv_mode != suggested:
        logger.warning(
            f"the model's name suggests template {suggested}; using {conv_mode} as --conv-mode says"
        )
    return template(conv_mode, "")


def image_token(config: PretrainedConfig) -> str:
    """Return the image token of a prompt, between start and end tokens if the model uses them."""
    # A plain language model's config has no such field.
    if getattr(config, "mm_use_im_start_end", None):
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN


def image_line(config: PretrainedConfig) -> str:
    """Return the first line of a question about an image."""
    return image_token(config) + "\n"


def prompt_of(template_name: str, text: str, opening: str = "") -> str:
    """Return the whole prompt of one question, with `opening` before it, up to the model's turn."""
    conversation = conv_templates[template_name].copy()
    conversation.append_message(conversation.roles[0], opening + text)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()
