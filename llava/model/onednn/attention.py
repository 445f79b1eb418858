"""Attend by products of matrices.

- `attend` also returns the logarithm of the sum of the exponentials, which PyTorch's attention does not. With
  it, attention to parts of the keys adds up to attention to all of them.
- `attend_by_onednn` is quicker than PyTorch's where `can_use_onednn`.

Shapes: R rows, Q queries of a row, C columns, H heads, K heads of keys and values, E features of a head.
"""

from __future__ import annotations

import itertools

import torch

from llava.model.onednn.product import can_use_onednn, product

# Queries of a block. A block is not scored against columns after it, which no query of it may see.
_BLOCK = 160
# With fewer queries of a head, a call of oneDNN for each head takes longer than it saves.
_MANY = 64
# How many scores are in memory at a time, if a single row has no more: a quarter of a gigabyte.
_SCORES = 2**26


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from queries (R, H, Q, E) to keys and values (R, K, C, E), but not where `hidden` is true.

    `hidden` is (R, 1, Q, C).

    Returns:
        What they attend to, (R, H, Q, E), and the logarithm of the sum of the exponentials of the scores,
        (R, H, Q, 1). Both are float32.
    """
    rows, heads, length, features = query.shape
    groups = heads // keys.shape[1]
    query = query.reshape(rows, heads // groups, groups * length, features)
    if hidden is not None and groups > 1:
        hidden = hidden.repeat(1, 1, groups, 1)
    if groups * length >= _MANY and can_use_onednn(query, keys):
        attended, logs = torch.empty_like(query), query.new_empty((*query.shape[:-1], 1))
        for row in range(rows):
            unseen = None if hidden is None else hidden[row, 0]
            for head in range(heads // groups):
                at = row, head
                attended[at], logs[at] = _attend(
                    query[at], keys[at], values[at], unseen, scaling, by_onednn=True
                )
    else:
        at_a_time = max(_SCORES // (heads * length * keys.shape[2]), 1)
        masks = itertools.repeat(None) if hidden is None else hidden.split(at_a_time)
        parts = [
            _attend(q, k, v, mask, scaling, by_onednn=False)
            for q, k, v, mask in zip(
                *(states.split(at_a_time) for states in (query, keys, values)), masks, strict=False
            )
        ]
        attended, logs = (torch.cat(part) for part in zip(*parts, strict=True))
    return attended.reshape(rows, heads, length, features), logs.reshape(rows, heads, length, 1)


def attend_by_onednn(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *, is_causal: bool
) -> torch.Tensor:
    """Attend from queries (1, H, C, E) to keys and values (1, K, C, E), each head without gaps in memory.

    With `is_causal`, a query sees the columns up to its own.
    """
    _, heads, length, _ = query.shape
    groups = heads // keys.shape[1]
    scaled, attended = query * scaling, torch.empty_like(query)
    size = _BLOCK if is_causal else length
    later = torch.full((size, size), -torch.inf).triu(1) if is_causal else None
    for head in range(heads):
        for start in range(0, length, size):
            stop = min(start + size, length)
            end = stop if is_causal else length
            key, value = (states[0, head // groups, :end] for states in (keys, values))
            scores = product(scaled[0, head, start:stop], key)
            if later is not None:
                scores[:, start:] += later[: stop - start, : stop - start]
            attended[0, head, start:stop] = product(scores.softmax(-1), value.T)
    return attended


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor | None,
    scaling: float,
    *,
    by_onednn: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `attend` does for equal numbers of heads; `by_onednn` for one head, without R and H."""
    query = query * scaling  # in half precision, products of large queries would overflow
    if by_onednn:
        scores = product(query, keys)
    elif query.shape[-2] == 1:
        # A single query is a vector: in this order, PyTorch reads the keys twice as fast on a CPU.
        scores = (keys @ query.mT).mT.float()
    else:
        scores = (query @ keys.mT).float()
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    weights = weights.to(values.dtype)
    attended = product(weights, values.mT) if by_onednn else weights @ values
    return attended / total, highest + total.log()
