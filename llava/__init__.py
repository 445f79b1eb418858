"""LLaVA-1.5 in its MLLM-DataEngine variant: fine-tuning, evaluation, and the data that closes the loop.

Importing this package imports no torch; what needs it is loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.infer.answering import load_model as load
    from llava.model import LlavaLlamaForCausalLM

__version__ = "1.5.0"
__all__ = ["LlavaLlamaForCausalLM", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "LlavaLlamaForCausalLM":
        from llava.model import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    if name == "load":
        from llava.infer.answering import load_model

        return load_model
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
