"""Continue many prompts greedily, reading the prefix of each group once.

A group is one row of the batch: first its prefix, then the remaining ids of all its prompts side by side. A
mask lets each prompt see the prefix and itself only, and each prompt's position ids continue from the prefix.
So nothing of the prefix is copied, and there is no padding between the prompts of a group.

Shapes: G groups, P positions of a prefix, Q new positions of a pass, C columns (positions read so far),
N prompts, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from llava.infer.engine.budget import Budget
from llava.infer.engine.finite import explain_not_finite
from llava.infer.engine.greedy import Continuation, append_likeliest
from llava.infer.engine.kv_cache import preallocated_cache

# Owners of columns that do not belong to a single prompt.
_SHARED, _PADDING = -1, -2


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Prompts that share a prefix.

    Attributes:
        prefix: Embeddings of the prefix, (P, D), P > 0.
        indices: What the prompts are called in the results; unique numbers from 0 up.
        suffixes: The token ids that follow the prefix in each prompt, possibly none.
    """

    prefix: torch.Tensor
    indices: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]

    def without(self, indices: Collection[int]) -> PromptGroup:
        """Return the group without the prompts of these indices."""
        kept = [(i, ids) for i, ids in zip(self.indices, self.suffixes, strict=True) if i not in indices]
        return PromptGroup(self.prefix, tuple(i for i, _ in kept), tuple(ids for _, ids in kept))


@dataclass(slots=True)
class _Prompt:
    """A prompt in progress: its group's row, how many positions are read, and the ids to read next."""

    index: int
    group: int
    length: int
    ids: Sequence[int]
    continuation: Continuation = field(default_factory=Continuation)


def count_fitting_groups(groups: Sequence[PromptGroup], budget: Budget) -> int:
    """Count how many of the first groups fit into one pass with their prefixes; at least one."""
    longest = 0
    for count, group in enumerate(groups, start=1):
        longest = max(longest, len(group.prefix))
        if count > 1 and (count * longest > budget.positions or count > budget.prompts):
            return count - 1
    return len(groups)


@torch.inference_mode()
def continue_groups(
    model: PreTrainedModel,
    groups: Sequence[PromptGroup],
    budget: Budget,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> Iterator[tuple[int, Continuation]]:
    """Yield (index, continuation) for every prompt: its most likely tokens until a stop id or the limit.

    Args:
        model: A causal language model of transformers whose attention takes additive masks (sdpa, eager).
        groups: The prompts. All prefixes are read in one pass, suffixes in passes that `budget` limits.
        budget: The most positions and prompts of a pass.
        max_new_tokens: The most tokens to generate, stop id included.
        stop_ids: Ids that end an answer.
    """
    head = model.get_output_embeddings()
    reader = _GroupReader(model, [group.prefix for group in groups])
    batches = _split_into_batches(groups, budget)
    for batch in batches:
        reader.reset_to_prefixes()
        active = batch
        hidden = reader.read(active)
        for remaining in reversed(range(max_new_tokens)):
            with explain_not_finite(model, [group.prefix for group in groups]):
                tokens = append_likeliest(head(hidden), [prompt.continuation for prompt in active], stop_ids)
            for prompt, token in zip(active, tokens, strict=True):
                prompt.ids = () if token is None else (token,)
            active = [prompt for prompt in active if prompt.ids]
            if not active or not remaining:
                break
            if batch is batches[-1]:
                reader.drop_finished_groups(active)
            hidden = reader.read(active)
        yield from ((prompt.index, prompt.continuation) for prompt in batch)


class _GroupReader:
    """Runs the model over groups of prompts and keeps its cache, with the owner of each cached column."""

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[torch.Tensor]) -> None:
        """Read the prefixes, (P, D) each.

        They are padded on the right, which causal attention never sees, so this pass needs no mask.
        """
        self._embed, self._decoder = model.get_input_embeddings(), model.get_decoder()
        self._cache = preallocated_cache()
        embeds = pad_sequence(list(prefixes), batch_first=True)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=embeds.device)
        self._positions = torch.arange(embeds.shape[1], device=embeds.device).repeat(len(prefixes), 1)
        self._owners = torch.where(self._positions < lengths[:, None], _SHARED, _PADDING)
        self._prefix_columns = embeds.shape[1]
        hidden = self._run(embeds, self._positions, None)
        self._prefix_ends = hidden[range(len(prefixes)), (lengths - 1).tolist()]  # (G, D)

    def reset_to_prefixes(self) -> None:
        """Drop everything from the cache but the prefixes."""
        self._owners = self._owners[:, : self._prefix_columns]
        self._positions = self._positions[:, : self._prefix_columns]
        for layer in self._cache.layers:
            layer.keep_first(self._prefix_columns)

    def drop_finished_groups(self, active: Sequence[_Prompt]) -> None:
        """Drop the groups without an active prompt, if they are half or more, and renumber the others."""
        kept = sorted({prompt.group for prompt in active})
        if 2 * len(kept) > len(self._owners):
            return
        for prompt in active:
            prompt.group = kept.index(prompt.group)
        self._owners, self._positions = self._owners[kept], self._positions[kept]
        for layer in self._cache.layers:
            layer.keep_groups(torch.tensor(kept))

    def read(self, prompts: Sequence[_Prompt]) -> torch.Tensor:
        """Read the next ids of the prompts; return the hidden states at their ends, (N, D)."""
        columns: list[list[tuple[int, int, int]]] = [[] for _ in self._owners]  # (id, owner, position)
        last_columns = []
        for prompt in prompts:
            start, prompt.length = prompt.length, prompt.length + len(prompt.ids)
            positions = range(start, prompt.length)
            columns[prompt.group] += [
                (token, prompt.index, position) for token, position in zip(prompt.ids, positions, strict=True)
            ]
            last_columns.append(len(columns[prompt.group]) - 1)
        # A prompt without a suffix ends where its prefix does.
        hidden = self._prefix_ends[[prompt.group for prompt in prompts]]
        reading = [number for number, prompt in enumerate(prompts) if prompt.ids]
        if reading:
            new = self._read_columns(columns)
            hidden[reading] = new[[prompts[n].group for n in reading], [last_columns[n] for n in reading]]
        return hidden

    def _read_columns(self, columns: Sequence[Sequence[tuple[int, int, int]]]) -> torch.Tensor:
        """Read new (id, owner, position) columns in each group; return their hidden states, (G, Q, D)."""
        widest = max(len(group) for group in columns)
        # Padding has position 0, so that it sees the first column: attention to nothing gives NaN.
        padded = [[*group, *[(0, _PADDING, 0)] * (widest - len(group))] for group in columns]
        ids, owners, positions = torch.tensor(padded, device=self._owners.device).unbind(dim=2)
        self._owners = torch.cat((self._owners, owners), dim=1)
        self._positions = torch.cat((self._positions, positions), dim=1)
        visible = (self._owners[:, None] == _SHARED) | (self._owners[:, None] == owners[:, :, None])
        visible &= self._positions[:, None] <= positions[:, :, None]
        embeds = self._embed(ids)
        if visible.all():  # groups of a single prompt each, with one new token
            return self._run(embeds, positions, None)
        mask = torch.zeros(visible.shape, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_(~visible, torch.finfo(embeds.dtype).min)
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


def _split_into_batches(groups: Sequence[PromptGroup], budget: Budget) -> list[list[_Prompt]]:
    """Split the prompts into batches of one pass each, which take prompts from all groups with any left."""
    positions, count = max(budget.positions // len(groups), 1), max(budget.prompts // len(groups), 1)
    queues = [
        [
            _Prompt(index, number, len(group.prefix), suffix)
            for index, suffix in zip(group.indices, group.suffixes, strict=True)
        ]
        for number, group in enumerate(groups)
    ]
    batches = []
    while any(queues):
        batch = []
        for queue in queues:
            fitting = _count_fitting_prompts(queue[:count], positions)
            batch += queue[:fitting]
            del queue[:fitting]
        batches.append(batch)
    return batches


def _count_fitting_prompts(prompts: Sequence[_Prompt], positions: int) -> int:
    """Count how many of the first prompts have at most this many ids in total; at least one if any."""
    total = 0
    for count, prompt in enumerate(prompts):
        total += len(prompt.ids)
        if count and total > positions:
            return count
    return len(prompts)
