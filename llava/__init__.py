"""LLaVA-1.5 in its MLLM-DataEngine variant: fine-tuning, evaluation, and the data that closes the loop.

Importing this package imports no torch; `llava.LlavaLlamaForCausalLM` is loaded when first asked for.
"""

from __future__ import annotations

from typing import Any

__version__ = "1.5.0"
__all__ = ["LlavaLlamaForCausalLM", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LlavaLlamaForCausalLM":
        from llava.model import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
