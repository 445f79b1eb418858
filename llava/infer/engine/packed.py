"""Greedy continuation of many prompts that share beginnings: each beginning is read once.

The prompts of a group stand side by side behind their common prefix, in one row of the batch; a mask lets
each see the prefix and itself, and in each positions count on from the prefix. Nothing of the prefix is
copied, and there is no padding between the prompts of a group.

G groups, P positions of a prefix, Q positions of one pass, C columns (positions read so far), R prompts,
D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.infer.engine.budget import Budget
from llava.infer.engine.greedy import Continuation, append_likeliest
from llava.infer.engine.kv_cache import preallocated_cache

# Whose a column is, where it is no single prompt's.
_SHARED, _NOBODYS = -1, -2


@dataclass(frozen=True, slots=True)
class Prompts:
    """A group: embeddings of what its prompts share, (P, D), P > 0, and the ids that follow in each.

    The ids may be none. `names`, from 0 up, are what the prompts are called in the results.
    """

    prefix: torch.Tensor
    names: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]

    def without(self, names: Collection[int]) -> Prompts:
        """The group less the prompts called so."""
        left = [(n, rest) for n, rest in zip(self.names, self.rests, strict=True) if n not in names]
        return Prompts(self.prefix, tuple(n for n, _ in left), tuple(rest for _, rest in left))


@dataclass(slots=True)
class _Row:
    """A prompt on its way: its group, how many positions of it are read, and the ids to read next."""

    name: int
    group: int
    length: int
    ids: Sequence[int]
    found: Continuation = field(default_factory=Continuation)


def count_fitting_groups(groups: Sequence[Prompts], budget: Budget) -> int:
    """How many of the first groups can be read together, at least one."""
    longest = 0
    for count, group in enumerate(groups, start=1):
        longest = max(longest, len(group.prefix))
        if count > 1 and (count * longest > budget.tokens or count > budget.rows):
            return count - 1
    return len(groups)


@torch.inference_mode()
def continue_groups(
    model: Any,
    groups: Sequence[Prompts],
    budget: Budget,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> Iterator[tuple[int, Continuation]]:
    """(name, continuation) of every prompt: its likeliest tokens until a stop id or the limit.

    Args:
        model: A causal language model of transformers whose attention takes additive masks (sdpa, eager).
        groups: Their prefixes are read in one pass, what follows in passes of `budget`.
        budget: How many positions and prompts go through the model at a time.
        max_new_tokens: The most tokens to add, stop id included.
        stop_ids: Ids that end an answer.
    """
    head = model.get_output_embeddings()
    pack = _Pack(model, [group.prefix for group in groups])
    shares = _shares(groups, budget)
    for share in shares:
        pack.back_to_prefixes()
        rows = share
        hidden = pack.read(rows)
        for left in reversed(range(max_new_tokens)):
            tokens = append_likeliest(head(hidden), [row.found for row in rows], stop_ids)
            for row, token in zip(rows, tokens, strict=True):
                row.ids = () if token is None else (token,)
            rows = [row for row in rows if row.ids]
            if not rows or not left:
                break
            if share is shares[-1]:
                pack.drop_finished(rows)
            hidden = pack.read(rows)
        yield from ((row.name, row.found) for row in share)


class _Pack:
    """What the model has read of the groups: its cache, and whose each column of it is."""

    def __init__(self, model: Any, prefixes: Sequence[torch.Tensor]) -> None:
        """Read the prefixes, (P, D) each.

        They are padded on the right: causal attention never looks there, so this pass needs no mask.
        """
        self._embed, self._decoder = model.get_input_embeddings(), model.get_decoder()
        self._cache = preallocated_cache()
        embeds = pad_sequence(list(prefixes), batch_first=True)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=embeds.device)
        self._positions = torch.arange(embeds.shape[1], device=embeds.device).repeat(len(prefixes), 1)
        self._owners = torch.where(self._positions < lengths[:, None], _SHARED, _NOBODYS)
        self._prefix_columns = embeds.shape[1]
        hidden = self._run(embeds, self._positions, None)
        self._ends = hidden[range(len(prefixes)), (lengths - 1).tolist()]  # (G, D)

    def back_to_prefixes(self) -> None:
        """Forget all that was read but the prefixes."""
        self._owners = self._owners[:, : self._prefix_columns]
        self._positions = self._positions[:, : self._prefix_columns]
        for layer in self._cache.layers:
            layer.keep_first(self._prefix_columns)

    def drop_finished(self, rows: Sequence[_Row]) -> None:
        """Forget the groups that none of `rows` is in, if they are half or more, and number the rest anew."""
        kept = sorted({row.group for row in rows})
        if 2 * len(kept) > len(self._owners):
            return
        for row in rows:
            row.group = kept.index(row.group)
        self._owners, self._positions = self._owners[kept], self._positions[kept]
        for layer in self._cache.layers:
            layer.keep_groups(torch.tensor(kept))

    def read(self, rows: Sequence[_Row]) -> torch.Tensor:
        """Read the ids of the rows; hidden states at their ends, (R, D)."""
        columns: list[list[tuple[int, int, int]]] = [[] for _ in self._owners]  # (id, owner, position)
        at = []
        for row in rows:
            start, row.length = row.length, row.length + len(row.ids)
            places = range(start, row.length)
            columns[row.group] += zip(row.ids, [row.name] * len(row.ids), places, strict=True)
            at.append(len(columns[row.group]) - 1)
        hidden = self._ends[[row.group for row in rows]]
        reading = [number for number, row in enumerate(rows) if row.ids]
        if reading:
            ends = self._read(columns)
            hidden[reading] = ends[[rows[n].group for n in reading], [at[n] for n in reading]]
        return hidden

    def _read(self, columns: Sequence[Sequence[tuple[int, int, int]]]) -> torch.Tensor:
        """Read (id, owner, position) in each group; the hidden states, (G, Q, D)."""
        widest = max(len(group) for group in columns)
        # Padding sees the first column: attention to nothing at all would not be a number.
        padded = [[*group, *[(0, _NOBODYS, 0)] * (widest - len(group))] for group in columns]
        ids, owners, positions = torch.tensor(padded, device=self._owners.device).unbind(dim=2)
        self._owners = torch.cat((self._owners, owners), dim=1)
        self._positions = torch.cat((self._positions, positions), dim=1)
        seen = (self._owners[:, None] == _SHARED) | (self._owners[:, None] == owners[:, :, None])
        seen &= self._positions[:, None] <= positions[:, :, None]
        embeds = self._embed(ids)
        if seen.all():  # one new token each, of prompts that have a group to themselves
            return self._run(embeds, positions, None)
        mask = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_(~seen, torch.finfo(embeds.dtype).min)
        return self._run(embeds, positions, mask[:, None])

    def _run(self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden: torch.Tensor = self._decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


def _shares(groups: Sequence[Prompts], budget: Budget) -> list[list[_Row]]:
    """The prompts in shares of one pass each: some of every group that has any left."""
    tokens, rows = max(budget.tokens // len(groups), 1), max(budget.rows // len(groups), 1)
    waiting = [
        [
            _Row(name, number, len(group.prefix), rest)
            for name, rest in zip(group.names, group.rests, strict=True)
        ]
        for number, group in enumerate(groups)
    ]
    shares = []
    while any(waiting):
        share = []
        for queue in waiting:
            fits = _fitting_rows(queue[:rows], tokens)
            share += queue[:fits]
            del queue[:fits]
        shares.append(share)
    return shares


def _fitting_rows(rows: Sequence[_Row], tokens: int) -> int:
    """How many of the first rows have `tokens` ids together; at least one, if there is one."""
    total = 0
    for count, row in enumerate(rows):
        total += len(row.ids)
        if count and total > tokens:
            return count
    return len(rows)
