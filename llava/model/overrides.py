"""Detect code of others that changes the model: subclasses, replaced methods, hooks.

Published methods that prune image tokens replace a method of the model or of the vision tower. What they
replace must be called: shortcuts that would pass it over are taken only where nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType

from torch import nn
from transformers import PreTrainedModel

# Methods of a model, other than forward passes, that take part in an answer.
_METHODS = (
    *("generate", "prepare_inputs_for_generation", "prepare_inputs_labels_for_multimodal"),
    *("splice_images", "encode_images", "get_vision_tower"),
)
_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "liger_kernel", "deepspeed")
_MODEL = Path(__file__).parent
# Not the whole package: forks put their own models into it.
_OURS = (
    *("llava_arch.py", "packed_attention.py", "onednn/layers.py"),
    *("language_model/llava_llama.py", "multimodal_encoder/clip_encoder.py"),
)


def is_replaced(owner: object, name: str) -> bool:
    """Return whether a method in force is neither ours nor a library's.

    Args:
        owner: A model or one of its parts. Its own attributes, its class and its base classes all count.
        name: The method's name.
    """
    return _find_other_code(getattr(owner, name)) is not None


def find_change(model: PreTrainedModel) -> str | None:
    """Return what other code has changed in a model, in words, or None."""
    for name in _METHODS:
        if hasattr(model, name) and (place := _find_other_code(getattr(model, name))):
            return f"the model's {name} is replaced ({place})"
    return find_altered(model)


def find_altered(module: nn.Module) -> str | None:
    """Return the first part whose forward pass is replaced or hooked into, in words, or None."""
    for name, part in module.named_modules():
        for function in (part.forward, *part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            if place := _find_other_code(function):
                return f"the forward pass of {name or 'the model'} is replaced or hooked into ({place})"
    return None


def _find_other_code(function: Callable[..., object]) -> str | None:
    """Return the file and line of code that is neither ours nor a library's, or None."""
    for code in _find_code(function):
        if code is None:
            return "a function without code"
        if not _is_known_file(code.co_filename):
            return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
    return None


@cache
def _is_known_file(path: str) -> bool:
    modules = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    folders = [f"{Path(module.__file__).parent}/" for module in modules if module.__file__]
    return path.startswith((*folders, *(str(_MODEL / name) for name in _OURS)))


def _find_code(function: object) -> Iterator[CodeType | None]:
    """Yield the code of a function and of those that it wraps; None for what has no code."""
    while function is not None:
        if isinstance(function, partial):
            yield from _find_code(function.func)
        else:
            yield getattr(getattr(function, "__func__", function), "__code__", None)
        function = getattr(function, "__wrapped__", None)
