"""Continue many prompts greedily, reading the prefix of each group once.

README.md has a drawing of it. A group occupies a slot of the cache: first its prefix, then what its prompts
read after it, side by side. Slots become free as groups finish, and the next groups enter.

Shapes: P positions of a prefix, T new positions of a pass, N prompts, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from llava.errors import LlavaError
from llava.infer.engine.attention import PrefixPass, RestPass, attending_in_slots
from llava.infer.engine.budget import Budget
from llava.infer.engine.finite import explain_not_finite
from llava.infer.engine.greedy import Continuation, append_likeliest
from llava.infer.engine.kv_cache import SlotCache
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
    """A prompt in progress: how many positions are read, and the ids to read next."""

    index: int
    length: int
    ids: Sequence[int]
    continuation: Continuation = field(default_factory=Continuation)


class _Slot:
    """A group in the cache: its prompts in progress, and those that wait until these have finished."""

    def __init__(self, group: PromptGroup) -> None:
        self.group = group
        self.end = group.prefix[:0]  # (1, D) hidden state at the end of the prefix, once it is read
        self.columns = 0  # how many are in use
        self.active: list[_Prompt] = []
        self.waiting = deque(zip(group.indices, group.rests, strict=True))

    def start_prompts(self, positions: int, prompts: int) -> None:
        """Let the next prompts start: at most so many, with so many ids in total, but at least one."""
        self.columns = len(self.group.prefix)
        while self.waiting and len(self.active) < max(prompts, 1):
            index, ids = self.waiting[0]
            positions -= len(ids)
            if self.active and positions < 0:
                break
            self.active.append(_Prompt(index, self.columns, ids))
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
    """The groups in progress. The prompts of the first `_settled` slots have read their rests."""

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
        self._cache = SlotCache(self._embed.weight.device)
        self._slots: list[_Slot] = []
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
            columns = max(one.columns + one.count_new() for one in (slot, *self._slots))
            if self._slots and (len(self._slots) + 1) * columns > self._budget.cached:
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
        self._reserve()
        read = sum(len(slot.end) for slot in self._slots)
        for first, stop in self._split([len(slot.group.prefix) for slot in self._slots], read):
            self._read_prefixes(first, stop)
        for number in range(self._settled, len(self._slots)):
            self._cache.start_slot(number, self._slots[number].columns)
        for first, stop in self._split([slot.count_new() for slot in self._slots], self._settled):
            self._continue_prompts(first, stop)
        if any(slot.active for slot in self._slots):
            self._reserve()
            self._continue_prompts(0, len(self._slots))
        settled = [number for number, slot in enumerate(self._slots) if slot.active]
        again = [number for number, slot in enumerate(self._slots) if slot.waiting and not slot.active]
        order = _fill_gaps(settled) + again
        self._settled, self._slots = len(settled), [self._slots[number] for number in order]
        self._cache.arrange(order)
        return True

    def restart(self) -> None:
        """Empty the cache. All prompts in progress start again."""
        self._put_back(0)
        self._settled = 0
        self._cache = SlotCache(self._embed.weight.device)

    def take_finished(self) -> list[tuple[int, Continuation]]:
        """Return what has finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _reserve(self) -> None:
        """Make room in the cache for what the prompts in progress read next."""
        columns = max(slot.columns + slot.count_new() for slot in self._slots)
        self._cache.reserve(len(self._slots), columns)

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
            PrefixPass(self._cache, first, lengths),
        )
        for slot, states in zip(slots, hidden.split(lengths), strict=True):
            slot.end = states[-1:].clone()

    def _continue_prompts(self, first: int, stop: int) -> None:
        """Read the next ids of the prompts in these slots, and append the likeliest token to each."""
        slots = self._slots[first:stop]
        ends = iter(self._read_rests(first, stop))
        # A prompt without a rest ends where its prefix does.
        hidden = [next(ends) if prompt.ids else slot.end for slot in slots for prompt in slot.active]
        prompts = [prompt for slot in slots for prompt in slot.active]
        with explain_not_finite(self._model, [slot.group.prefix for slot in slots]):
            logits = self._model.get_output_embeddings()(torch.cat(hidden))
            tokens = append_likeliest(logits, [prompt.continuation for prompt in prompts], self._stop_ids)
        for prompt, token in zip(prompts, tokens, strict=True):
            is_last = len(prompt.continuation.ids) == self._max_new_tokens
            prompt.ids = () if token is None or is_last else (token,)
        self._finished += [(prompt.index, prompt.continuation) for prompt in prompts if not prompt.ids]
        for slot in slots:
            slot.active = [prompt for prompt in slot.active if prompt.ids]

    def _read_rests(self, first: int, stop: int) -> Sequence[torch.Tensor]:
        """Read the next ids of the prompts in these slots; return hidden states (1, D) at their ends."""
        new: list[tuple[int, int, int, int, int, int]] = []
        ends = []
        for number, slot in enumerate(self._slots[first:stop]):
            place = 0
            for prompt in slot.active:
                for token in prompt.ids:
                    new.append((token, number, place, slot.columns, prompt.index, prompt.length))
                    place, slot.columns, prompt.length = place + 1, slot.columns + 1, prompt.length + 1
                if prompt.ids:
                    ends.append(len(new) - 1)
        if not new:
            return ()
        rows = torch.tensor(new, device=self._embed.weight.device).T  # (6, T)
        width = max(slot.columns for slot in self._slots[first:stop])
        embeds = self._embed(rows[0])
        rests = RestPass(self._cache, slice(first, stop), width, rows[1:], embeds.dtype)
        return self._run(embeds, rows[-1], rests)[ends].split(1)

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


def _fill_gaps(kept: Sequence[int]) -> list[int]:
    """Return the numbers so ordered that the last ones fill the gaps and the others stay in place."""
    last = (number for number in kept if number >= len(kept))
    return [place if place in kept else next(last) for place in range(len(kept))]
