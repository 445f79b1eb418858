"""Build the projector, which maps vision features to the language model's width."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from llava.errors import CheckpointError
from llava.model.fields import image_fields
from llava.model.loading.checkpoint import describe_owner

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MLP = re.compile(r"mlp([1-9]\d*)x_gelu")


def is_projector_type(kind: str | None) -> bool:
    """Return whether `kind` names a projector type; None stands for `linear`."""
    return kind in (None, "linear", "identity") or _MLP.fullmatch(kind) is not None


def build_vision_projector(config: PretrainedConfig, delay_load: bool = False, **kwargs: object) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names: linear, mlpNx_gelu or identity.

    An MLP has linear layers at even indices and exact GELUs between them, so that its state-dict keys are
    `0.weight`, `2.weight`, ... as in published weights. Like the original, accepts further arguments and uses
    none. Source: LLaVA v1.2.2 multimodal_projector/builder.py.
    """
    fields = image_fields(config)
    kind = fields.mm_projector_type or "linear"
    if kind == "identity":
        return nn.Identity()
    if fields.mm_hidden_size is None:
        raise CheckpointError(
            f"{describe_owner(config)} names a vision tower but has no mm_hidden_size", code="missing-field"
        )
    if kind == "linear":
        return nn.Linear(fields.mm_hidden_size, config.hidden_size)
    depth = _MLP.fullmatch(kind)
    if depth is None:
        raise CheckpointError(
            f"{describe_owner(config)} has mm_projector_type {kind!r}; there are linear, mlpNx_gelu and "
            "identity",
            code="unknown-projector-type",
        )
    layers: list[nn.Module] = [nn.Linear(fields.mm_hidden_size, config.hidden_size)]
    for _ in range(1, int(depth[1])):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
