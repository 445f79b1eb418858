"""Find out why a model's logits are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel

from llava.errors import CheckpointError


class RequireFinite(LogitsProcessor):
    """Raises a FloatingPointError in `generate` at logits that are not finite; see `explain_not_finite`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, V) unchanged."""
        if not scores.isfinite().all():
            raise FloatingPointError("the logits are not finite")
        return scores


@contextmanager
def explain_not_finite(model: PreTrainedModel, prompts: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Turn a FloatingPointError of the block into an error that names the model and what is at fault.

    Args:
        model: The model that answers.
        prompts: Embeddings (L, D) of the prompts that it answers, to read again.

    Raises:
        CheckpointError: Logits were not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        raise CheckpointError(
            f"{model.name_or_path}: the model's logits are not finite: {_find_reason(model, prompts)}",
            code="non-finite-logits",
        ) from error


def _find_reason(model: PreTrainedModel, prompts: Sequence[torch.Tensor]) -> str:
    weight = _find_weight(model)
    if weight is not None:
        return f"{weight} holds NaN or infinity; fetch or train this checkpoint again"
    module, dtype = _find_module(model, prompts) or "a layer", str(model.dtype).removeprefix("torch.")
    return f"the weights are finite, but {module} overflows in {dtype}; load the model in another precision"


def _find_weight(model: nn.Module) -> str | None:
    named = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, tensor in named if not tensor.isfinite().all()), None)


@torch.inference_mode()
def _find_module(model: PreTrainedModel, prompts: Sequence[torch.Tensor]) -> str | None:
    """Return the first module whose output is not finite while the prompts are read, or None."""
    if not all(prompt.isfinite().all() for prompt in prompts):
        return "the vision tower or the projector"
    found: list[str] = []

    def note(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name
    ]
    try:
        for prompt in prompts:
            model(inputs_embeds=prompt[None], logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
