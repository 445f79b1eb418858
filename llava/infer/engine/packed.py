"""Continue many prompts greedily, reading the prefix of each group once.

README.md has a drawing of it. A group in progress has a slot, a row in the cache of prefixes. Each of its
prompts in progress has a row in the cache of rests, for what it reads after the prefix. Rows become free as
prompts and groups finish, and the next ones enter.

Shapes: P positions of a prefix, T new positions of a pass, N prompts, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from llava.errors import LlavaError
from llava.infer.engine.attention import PrefixPass, RestPass, SeenRows, attending_in_slots
from llava.infer.engine.budget import Budget
from llava.infer.engine.finite import explain_not_finite
from llava.infer.engine.greedy import Continuation, append_likeliest
from llava.infer.engine.kv_cache import RowCache
from llava.model.in_memory import try_in_memory


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Prompts that share a prefix.

    Attributes:
        prefix: Embeddings of the prefix, (P, D), P > 0.
        indices: What the prompts are called in the results; unique numbers from 0 up.
        rests: The token ids that follow the prefix in each prompt, possibly none.
    """

    prefix: torch.Tensor
    indices: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Prompt:
    """A prompt in progress: how many positions are read after the prefix, and the ids to read next."""

    index: int
    slot: _Slot
    ids: Sequence[int]
    length: int = 0
    continuation: Continuation = field(default_factory=Continuation)

    def count_columns(self) -> int:
        """Count the columns of its row that are in use once its ids are read."""
        return self.length + len(self.ids)


class _Slot:
    """A group in progress: its prompts in progress, and those that wait until these have finished."""

    def __init__(self, group: PromptGroup) -> None:
        self.group = group
        self.end = group.prefix[:0]  # (1, D) hidden state at the end of the prefix, once it is read
        self.active: list[_Prompt] = []
        self.waiting = deque(zip(group.indices, group.rests, strict=True))

    def start_prompts(self, positions: int, prompts: int) -> None:
        """Let the next prompts start: at most so many, with so many ids in total, but at least one."""
        while self.waiting and len(self.active) < max(prompts, 1):
            index, ids = self.waiting[0]
            positions -= len(ids)
            if self.active and positions < 0:
                break
            self.active.append(_Prompt(index, self, ids))
            self.waiting.popleft()

    def count_new(self) -> int:
        """Count the positions that its prompts read next."""
        return sum(len(prompt.ids) for prompt in self.active)

    def unfinished(self) -> PromptGroup:
        """Return the group without its finished prompts."""
        rests = dict(zip(self.group.indices, self.group.rests, strict=True))
        left = [prompt.index for prompt in self.active] + [index for index, _ in self.waiting]
        return PromptGroup(self.group.prefix, tuple(left), tuple(rests[index] for index in left))


def continue_groups(
    model: PreTrainedModel,
    groups: Iterable[PromptGroup],
    budget: Budget,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> Iterator[tuple[int, Continuation]]:
    """Yield (index, continuation) for every prompt: its most likely tokens until a stop id or the limit.

    Args:
        model: A causal language model of transformers.
        groups: The prompts; a group is taken from them when there is room for it. If they raise a
            `LlavaError`, the prompts before it are finished first.
        budget: What may be in memory at a time. It is halved, and prompts start again, if memory runs out.
        max_new_tokens: The most tokens to generate, stop id included.
        stop_ids: Ids that end an answer.

    Raises:
        CheckpointError: The model's logits are NaN or infinite.
        SettingsError: A single prompt does not fit into memory.
    """
    batch = _Batch(model, groups, budget, max_new_tokens, stop_ids)
    while batch.fill():
        if not try_in_memory(batch.advance):
            batch.restart()
            budget.halve()
        yield from batch.take_finished()


class _Batch:
    """The groups and prompts in progress. The prompts of the first `_settled` slots have read their rests."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Iterable[PromptGroup],
        budget: Budget,
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> None:
        self._model, self._budget = model, budget
        self._max_new_tokens, self._stop_ids = max_new_tokens, stop_ids
        self._embed, self._decoder = model.get_input_embeddings(), model.get_decoder()
        self._groups = iter(groups)
        self._waiting: deque[PromptGroup] = deque()  # for room, or for others to share a pass with
        self._is_last = False  # whether all groups have been taken
        self._failure: LlavaError | None = None
        self._prefixes, self._rests = RowCache(), RowCache()
        self._slots: list[_Slot] = []  # by their row in the cache of prefixes
        self._prompts: list[_Prompt] = []  # by their row in the cache of rests
        self._settled = 0
        self._finished: list[tuple[int, Continuation]] = []

    def fill(self) -> bool:
        """Let prompts start as far as the budget allows; return whether any are in progress."""
        free = self._budget.prompts - sum(len(slot.active) for slot in self._slots)
        for slot in self._slots[self._settled :]:
            slot.start_prompts(self._budget.positions, free)
            free -= len(slot.active)
        present = len(self._slots)
        while free > 0 or not self._slots:
            if not self._waiting and not self._take_group():
                break
            slot = _Slot(self._waiting[0])
            slot.start_prompts(self._budget.positions, free)
            if self._slots and _count_cached([*self._slots, slot]) > self._budget.cached:
                break
            self._slots.append(slot)
            free -= len(slot.active)
            self._waiting.popleft()
        if present and not self._is_last:
            self._put_back(self._find_stranded(present))
        if self._failure and not self._slots:
            raise self._failure
        return bool(self._slots)

    @torch.inference_mode()
    def advance(self) -> bool:
        """Read what has started, then a token of every unfinished answer; free the slots that are done."""
        self._prompts += [prompt for slot in self._slots[self._settled :] for prompt in slot.active]
        self._reserve()
        read = sum(len(slot.end) for slot in self._slots)
        for first, stop in self._split([len(slot.group.prefix) for slot in self._slots], read):
            self._read_prefixes(first, stop)
        row = sum(len(slot.active) for slot in self._slots[: self._settled])
        for first, stop in self._split([slot.count_new() for slot in self._slots], self._settled):
            past = row + sum(len(slot.active) for slot in self._slots[first:stop])
            self._continue_prompts(slice(first, stop), slice(row, past))
            row = past
        self._free_rows()
        if self._prompts:
            self._reserve()
            self._continue_prompts(slice(0, len(self._slots)), slice(0, len(self._prompts)))
            self._free_rows()
        settled = [number for number, slot in enumerate(self._slots) if slot.active]
        again = [number for number, slot in enumerate(self._slots) if slot.waiting and not slot.active]
        order = _fill_gaps(settled) + again
        self._settled, self._slots = len(settled), [self._slots[number] for number in order]
        self._prefixes.arrange(order)
        return True

    def restart(self) -> None:
        """Empty the caches. All prompts in progress start again."""
        self._put_back(0)
        self._settled, self._prompts = 0, []
        self._prefixes, self._rests = RowCache(), RowCache()

    def take_finished(self) -> list[tuple[int, Continuation]]:
        """Return what has finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _reserve(self) -> None:
        """Make room in the caches for what the prompts in progress read next."""
        self._prefixes.reserve(len(self._slots), max(len(slot.group.prefix) for slot in self._slots))
        self._rests.reserve(len(self._prompts), max(prompt.count_columns() for prompt in self._prompts))

    def _free_rows(self) -> None:
        """Let the last prompts take over the rows of those that are finished."""
        order = _fill_gaps([row for row, prompt in enumerate(self._prompts) if prompt.ids])
        self._prompts = [self._prompts[row] for row in order]
        self._rests.arrange(order)

    def _take_group(self) -> bool:
        """Let the next group wait for room; return whether there is one."""
        try:
            self._waiting.append(next(self._groups))
        except StopIteration:
            self._is_last = True
        except LlavaError as error:
            self._failure, self._is_last = error, True
        return bool(self._waiting)

    def _find_stranded(self, present: int) -> int:
        """Return from which slot on new groups had better wait; the first `present` slots are in progress.

        A pass takes a GPU nearly as long for one prefix as for twenty. So those of a last pass that is less
        than half full wait, unless they are a quarter of what is in progress, which would idle in part.
        """
        sizes = [len(slot.group.prefix) for slot in self._slots]
        *_, (first, stop) = [(present, present), *self._split(sizes, present)]
        is_full = 2 * sum(sizes[first:stop]) >= self._budget.positions
        return stop if is_full or 4 * (stop - first) >= present else first

    def _put_back(self, first: int) -> None:
        """Let the groups of the slots from `first` on wait again."""
        groups = [slot.unfinished() for slot in self._slots[first:]]
        self._waiting.extendleft(group for group in reversed(groups) if group.indices)
        del self._slots[first:]

    def _split(self, sizes: Sequence[int], first: int) -> Iterator[tuple[int, int]]:
        """Yield (first, stop) of the slots from `first` on that go into a pass each, by their sizes."""
        total = 0
        for number in range(first, len(sizes)):
            total += sizes[number]
            if number > first and total > self._budget.positions:
                yield first, number
                first, total = number, sizes[number]
        if first < len(sizes):
            yield first, len(sizes)

    def _read_prefixes(self, first: int, stop: int) -> None:
        slots = self._slots[first:stop]
        lengths = [len(slot.group.prefix) for slot in slots]
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = self._run(
            torch.cat([slot.group.prefix for slot in slots]),
            positions.to(self._embed.weight.device),
            PrefixPass(self._prefixes, first, lengths),
        )
        for slot, states in zip(slots, hidden.split(lengths), strict=True):
            slot.end = states[-1:].clone()

    def _continue_prompts(self, numbers: slice, rows: slice) -> None:
        """Read the next ids of the prompts in these rows, and append the likeliest token to each.

        Args:
            numbers: The numbers of the slots that the prompts belong to.
            rows: The rows of the prompts.
        """
        ends = iter(self._read_rests(numbers, rows))
        slots, prompts = self._slots[numbers], self._prompts[rows]
        # A prompt without a rest ends where its prefix does.
        hidden = [next(ends) if prompt.ids else prompt.slot.end for prompt in prompts]
        with explain_not_finite(self._model, [slot.group.prefix for slot in slots]):
            logits = self._model.get_output_embeddings()(torch.cat(hidden))
            tokens = append_likeliest(logits, [prompt.continuation for prompt in prompts], self._stop_ids)
        for prompt, token in zip(prompts, tokens, strict=True):
            is_last = len(prompt.continuation.ids) == self._max_new_tokens
            prompt.ids = () if token is None or is_last else (token,)
        self._finished += [(prompt.index, prompt.continuation) for prompt in prompts if not prompt.ids]
        for slot in slots:
            slot.active = [prompt for prompt in slot.active if prompt.ids]

    def _read_rests(self, numbers: slice, rows: slice) -> Sequence[torch.Tensor]:
        """Read the next ids of the prompts in these rows; return hidden states (1, D) at their ends."""
        number_of = {slot: number for number, slot in enumerate(self._slots[numbers])}
        new: list[tuple[int, int, int, int, int]] = []
        ends = []
        for row, prompt in enumerate(self._prompts[rows]):
            for token in prompt.ids:
                prompt.length += 1
                new.append((token, number_of[prompt.slot], len(prompt.slot.group.prefix), row, prompt.length))
            if prompt.ids:
                ends.append(len(new) - 1)
        if not new:
            return ()
        device = self._embed.weight.device
        tokens, slots, prefixes, prompts, lengths = zip(*new, strict=True)
        positions = torch.tensor([prefixes, lengths], device=device).sum(0) - 1
        rest_pass = RestPass(
            SeenRows(self._prefixes, numbers, slots, prefixes, device),
            SeenRows(self._rests, rows, prompts, lengths, device),
        )
        embeds = self._embed(torch.tensor(tokens, device=device))
        return self._run(embeds, positions, rest_pass)[ends].split(1)

    def _run(
        self, embeds: torch.Tensor, positions: torch.Tensor, slot_pass: PrefixPass | RestPass
    ) -> torch.Tensor:
        """Run the model's layers over embeddings (T, D) at these positions; return hidden states (T, D)."""
        with attending_in_slots(self._decoder.config):
            output = self._decoder(
                inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False, slot_pass=slot_pass
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def _count_cached(slots: Sequence[_Slot]) -> int:
    """Count the positions of both caches, unused ones included, once the prompts have read their ids."""
    prompts = [prompt for slot in slots for prompt in slot.active]
    prefixes = len(slots) * max(len(slot.group.prefix) for slot in slots)
    return prefixes + len(prompts) * max(prompt.count_columns() for prompt in prompts)


def _fill_gaps(kept: Sequence[int]) -> list[int]:
    """Return the numbers so ordered that the last ones fill the gaps and the others stay in place."""
    last = (number for number in kept if number >= len(kept))
    in_place = set(kept)
    return [place if place in in_place else next(last) for place in range(len(kept))]
