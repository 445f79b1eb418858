"""Continue one prompt greedily, tracking the smallest margin between the top-1 and top-2 logits.

Shapes: L positions of the prompt, D width, N prompts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from llava.infer.engine.finite import explain_not_finite


@dataclass(slots=True)
class Continuation:
    """The new tokens of one prompt.

    Attributes:
        ids: The new token ids, without the stop id.
        margin: The smallest difference between the top-1 and top-2 logits over all steps.
        lead: The smallest margin relative to the largest absolute logit of its step.
    """

    ids: list[int] = field(default_factory=list)
    margin: float = math.inf
    lead: float = math.inf


@torch.inference_mode()
def continue_prompt(
    model: PreTrainedModel, prompt: torch.Tensor, *, max_new_tokens: int, stop_ids: Collection[int]
) -> Continuation:
    """Decode the answer to one prompt greedily, as transformers' `generate` does.

    Args:
        model: A causal language model of transformers.
        prompt: Embeddings of the prompt, (L, D).
        max_new_tokens: The maximum number of tokens to generate; a stop id counts.
        stop_ids: Ids that end an answer.

    Returns:
        The new ids without the stop id, and the smallest margins between the two likeliest tokens.

    Raises:
        CheckpointError: The model's logits are NaN or infinite.
    """
    cache = DynamicCache(config=model.config)
    continuation = Continuation()
    inputs: dict[str, torch.Tensor] = {"inputs_embeds": prompt[None]}
    for _ in range(max_new_tokens):
        logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        with explain_not_finite(model, [prompt]):
            token = append_likeliest(logits, [continuation], stop_ids)[0]
        if token is None:
            break
        inputs = {"input_ids": torch.tensor([[token]], device=prompt.device)}
    return continuation


def append_likeliest(
    logits: torch.Tensor, continuations: Sequence[Continuation], stop_ids: Collection[int]
) -> list[int | None]:
    """Append to each continuation its most likely token by `logits` (N, V).

    Returns:
        The tokens, with None for continuations that end with a stop id.

    Raises:
        FloatingPointError: A logit is NaN or infinite.
    """
    logits = logits.float()
    best = logits.topk(2, dim=1).values
    # topk may return any of equal logits; generate() uses argmax.
    chosen: list[int] = logits.argmax(dim=1).tolist()
    margins, scales = (best[:, 0] - best[:, 1]).tolist(), logits.abs().amax(dim=1).tolist()
    if not all(map(math.isfinite, scales)):
        raise FloatingPointError("the logits are not finite")
    tokens: list[int | None] = []
    for continuation, token, margin, scale in zip(continuations, chosen, margins, scales, strict=True):
        continuation.margin = min(continuation.margin, margin)
        continuation.lead = min(continuation.lead, margin / scale if scale else 0.0)
        is_end = token in stop_ids
        if not is_end:
            continuation.ids.append(token)
        tokens.append(None if is_end else token)
    return tokens
