"""Turn a question into the prompt that a model was trained on: choose the template, add the image token.

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

    from llava.infer.engine.requests import ModelChoice

logger = logging.getLogger(__name__)

# First match in the lower-cased model name wins.
_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)


def require_template(conv_mode: str) -> str:
    """Return `conv_mode`, the name of a template.

    Raises:
        SettingsError: There is no such template; the message lists those there are.
    """
    if conv_mode not in conv_templates:
        raise SettingsError(
            f"--conv-mode {conv_mode!r}: no such template; there are: {', '.join(sorted(conv_templates))}",
            code="unknown-template",
        )
    return conv_mode


def template(conv_mode: str, model_name: str) -> str:
    """Return the template that `conv_mode` names, or its `_mmtag` version for a pre-trained `plain` model.

    Raises:
        SettingsError: There is no such template.
    """
    require_template(conv_mode)
    is_plain = "plain" in model_name and "finetune" not in model_name.lower() and "mmtag" not in conv_mode
    tagged = f"{conv_mode}_mmtag"
    if is_plain and tagged in conv_templates:
        logger.info(f"{model_name} is a plain model: template {tagged} in place of {conv_mode}")
        return tagged
    return conv_mode


def template_for_chat(conv_mode: str | None, config: PretrainedConfig, choice: ModelChoice) -> str:
    """Return the template for a chat: `conv_mode` if given, else the one that fits the model best.

    Args:
        conv_mode: The template that the user chose.
        config: The loaded model's config.
        choice: Where the model was loaded from: names are a hint.

    Raises:
        SettingsError: There is no template `conv_mode`.
    """
    suggested, reason = _suggest_template(config, choice.name, choice.base or "")
    if conv_mode is None:
        logger.info(f"template {suggested} ({reason}); --conv-mode chooses another")
        return suggested
    if conv_templates[require_template(conv_mode)] != conv_templates[suggested]:
        logger.warning(f"template {conv_mode}, as --conv-mode says; {suggested} was expected ({reason})")
    return conv_mode


def _suggest_template(config: PretrainedConfig, model_name: str, base_name: str) -> tuple[str, str]:
    """Return a template and why: what the checkpoint says, what its content implies, the name last."""
    stated = getattr(config, "conversation_template", None)
    if stated in conv_templates:
        return stated, "its config.json says so"
    if "vicuna" in base_name.lower() and "-v1" in base_name:
        return "llava_v1", f"its base is {base_name}"
    is_padded = getattr(config, "image_aspect_ratio", None) == "pad"
    if is_padded and getattr(config, "mm_projector_type", None) == "mlp2x_gelu":
        return "llava_v1", "its config.json is LLaVA-1.5's"
    lowered = model_name.lower()
    by_name = next((name for part, name in _BY_NAME if part in lowered), "llava_v0")
    return by_name, f"by the model's name, {model_name}"


def warn_of_other_template(conv_mode: str, config: PretrainedConfig) -> None:
    """Warn if a checkpoint says that it was trained with another template than `conv_mode`."""
    stated = getattr(config, "conversation_template", None)
    if stated in conv_templates and conv_templates[stated] != conv_templates[conv_mode]:
        logger.warning(f"template {conv_mode}, but the model was trained with {stated}: see --conv-mode")


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
