"""Greedy continuation of one prompt alone, with how narrowly each token was decided.

L positions of the prompt, D width, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(slots=True)
class Continuation:
    """New token ids, without the one that ended them.

    `margin` is the smallest lead of a chosen token, `scale` the largest logit of any token, sign ignored.
    """

    ids: list[int] = field(default_factory=list)
    margin: float = float("inf")
    scale: float = 0.0


@torch.inference_mode()
def continue_prompt(
    model: Any, prompt: torch.Tensor, *, max_new_tokens: int, stop_ids: Collection[int]
) -> Continuation:
    """Continue a prompt with its likeliest tokens until a stop id or the limit, as `generate` would.

    Args:
        model: A causal language model of transformers.
        prompt: Embeddings, (L, D).
        max_new_tokens: The most tokens to add, stop id included.
        stop_ids: Ids that end an answer.
    """
    cache = DynamicCache(config=model.config)
    found = Continuation()
    inputs: dict[str, Any] = {"inputs_embeds": prompt[None]}
    for _ in range(max_new_tokens):
        logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        token = append_likeliest(logits, [found], stop_ids)[0]
        if token is None:
            break
        inputs = {"input_ids": torch.tensor([[token]], device=prompt.device)}
    return found


def append_likeliest(
    logits: torch.Tensor, rows: Sequence[Continuation], stop_ids: Collection[int]
) -> list[int | None]:
    """Give every row its likeliest token by `logits` (R, V); the tokens, None for rows that end here."""
    logits = logits.float()
    best = logits.topk(2, dim=1).values
    # topk does not promise the first of equals; argmax is what generate() takes.
    chosen: list[int] = logits.argmax(dim=1).tolist()
    leads, scales = (best[:, 0] - best[:, 1]).tolist(), logits.abs().amax(dim=1).tolist()
    taken: list[int | None] = []
    for row, token, lead, scale in zip(rows, chosen, leads, scales, strict=True):
        row.margin, row.scale = min(row.margin, lead), max(row.scale, scale)
        is_end = token in stop_ids
        if not is_end:
            row.ids.append(token)
        taken.append(None if is_end else token)
    return taken
