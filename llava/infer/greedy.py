"""Greedy continuation of several prompts at once, with how narrowly each was decided.

B rows, L positions of the longest prompt, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache


@dataclass(slots=True)
class Continuation:
    """New token ids, without the one that ended them; `margin` is the smallest lead of a chosen token."""

    ids: list[int] = field(default_factory=list)
    margin: float = float("inf")


@torch.inference_mode()
def continue_greedily(
    model: Any, prompts: Sequence[torch.Tensor], *, max_new_tokens: int, stop_ids: Collection[int]
) -> list[Continuation]:
    """Continue each prompt with its likeliest tokens until a stop id or the limit.

    Prompts are padded on the left whatever the model's config says of padding: the last position of every row
    must be its prompt's last. Position ids are counted from each row's first real position.

    Args:
        model: A causal language model of transformers.
        prompts: Embeddings, (L_i, D) each.
        max_new_tokens: The most tokens to add, stop id included.
        stop_ids: Ids that end an answer.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    longest = int(lengths.max())
    is_padded = int(lengths.min()) < longest
    # Without padding there is no mask, so that attention takes the same path as for one prompt alone.
    mask = (torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {
        "inputs_embeds": pad_sequence(list(prompts), batch_first=True, padding_side="left")
    }
    cache = DynamicCache(config=model.config)
    found = [Continuation() for _ in prompts]
    unfinished = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits = model(
            **inputs,
            attention_mask=mask if is_padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = _take(logits.float(), found, unfinished, stop_ids)
        if not unfinished:
            break
        inputs = {"input_ids": tokens[:, None]}
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return found


def _take(
    logits: torch.Tensor, found: list[Continuation], unfinished: set[int], stop_ids: Collection[int]
) -> torch.Tensor:
    """Give every unfinished row its likeliest token; the tokens, (B,). `logits` is (B, V)."""
    best = logits.topk(2, dim=1)
    # topk does not promise the first of equals; argmax is what generate() takes.
    tokens = logits.argmax(dim=1)
    chosen = tokens.tolist()
    leads = (best.values[:, 0] - best.values[:, 1]).tolist()
    for row in sorted(unfinished):
        found[row].margin = min(found[row].margin, leads[row])
        if chosen[row] in stop_ids:
            unfinished.discard(row)
        else:
            found[row].ids.append(chosen[row])
    return tokens
