"""The model: a LLaMA that also reads image features. Its classes are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]


def __getattr__(name: str) -> type[LlavaConfig | LlavaLlamaForCausalLM]:
    if name in __all__:
        return getattr(import_module("llava.model.language_model.llava_llama"), name)
    raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
