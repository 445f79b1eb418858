"""Detect code of others that changes the model: subclasses, replaced methods, hooks.

Published methods that prune image tokens replace a method of the model or of the vision tower. What they
replace must be called: shortcuts that would pass it over are taken only where nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "liger_kernel", "deepspeed")
_MODEL = Path(__file__).parent
# Not the whole package: forks put their own models into it.
_OURS = (
    *("llava_arch.py", "packed_attention.py"),
    *("language_model/llava_llama.py", "multimodal_encoder/clip_encoder.py"),
)


def is_replaced(owner: object, name: str) -> bool:
    """Return whether a method in force is neither ours nor a library's.

    Args:
        owner: A model or one of its parts. Its own attributes, its class and its base classes all count.
        name: The method's name.
    """
    return not _is_known(getattr(owner, name))


def find_change(model: PreTrainedModel) -> str | None:
    """Return what other code has changed in a model, in words, or None."""
    for name in ("generate", "prepare_inputs_labels_for_multimodal", "encode_images", "get_vision_tower"):
        if hasattr(model, name) and is_replaced(model, name):
            return f"the model's {name} is replaced"
    part = find_altered(model)
    if part is None:
        return None
    return f"the forward pass of {part or 'the model'} is replaced or hooked into"


def find_altered(module: nn.Module) -> str | None:
    """Return the name of the first part whose forward pass is replaced or hooked into, or None.

    The name is dotted, and empty for the module itself.
    """
    for name, part in module.named_modules():
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if not all(map(_is_known, (part.forward, *hooks))):
            return name
    return None


def _is_known(function: Callable[..., Any]) -> bool:
    return all(code is not None and _is_known_file(code.co_filename) for code in _find_code(function))


@cache
def _is_known_file(path: str) -> bool:
    modules = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    folders = [f"{Path(module.__file__).parent}/" for module in modules if module.__file__]
    return path.startswith((*folders, *(str(_MODEL / name) for name in _OURS)))


def _find_code(function: Any) -> Iterator[Any]:
    """Yield the code of a function and of those that it wraps; None for what has no code."""
    while function is not None:
        if isinstance(function, partial):
            yield from _find_code(function.func)
        else:
            yield getattr(getattr(function, "__func__", function), "__code__", None)
        function = getattr(function, "__wrapped__", None)
