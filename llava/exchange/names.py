"""Map names of weights and config fields between this package and the folders of llava-hf.

Source: the files of llava-hf/llava-1.5-7b-hf, which transformers, vLLM and SGLang read.
"""

from __future__ import annotations

from llava.errors import CheckpointError
from llava.model.loading.weights import Tensors

# A name that starts with the left prefix in this package starts with the right one there. First match wins.
_PREFIXES = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
# The names that the model's modules have in transformers 5, as a state dict written by hand has them. What
# `save_pretrained` writes has the published names, but in the vision tower no `vision_model.`.
_NEWER_PREFIXES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
_TOWER = "vision_tower."
_NESTED_TOWER = "vision_tower.vision_model."


def to_hf(tensors: Tensors) -> Tensors:
    """Return the tensors under llava-hf's names; the vision tower's must be there."""
    return {_replace_prefix(name, _PREFIXES): tensor for name, tensor in tensors.items()}


def from_hf(tensors: Tensors) -> Tensors:
    """Return the tensors under this package's names.

    Raises:
        CheckpointError: A name belongs to no part of the model.
    """
    back = tuple((theirs, ours) for ours, theirs in _PREFIXES)
    found: Tensors = {}
    for name, tensor in tensors.items():
        published = _replace_prefix(name, _NEWER_PREFIXES)
        if published.startswith(_TOWER) and not published.startswith(_NESTED_TOWER):
            published = _NESTED_TOWER + published.removeprefix(_TOWER)
        own = _replace_prefix(published, back)
        if own == published:
            raise CheckpointError(
                f"weight {name} belongs to neither the language model, the vision tower nor the projector",
                code="unknown-weight",
            )
        found[own] = tensor
    return found


def _replace_prefix(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
