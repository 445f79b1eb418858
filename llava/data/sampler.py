"""Samplers: the order of an epoch, grouped by length and modality.

Lengths are word counts with a sign: positive with an image, negative without. A *megabatch* is what all ranks
process between two optimizer steps. Within one, lengths are similar and modalities are not mixed, so that
there is little padding and ranks do not wait for each other.

Source: LLaVA v1.2.2 llava/train/llava_trainer.py; the orders are equal to the original's for equal seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from itertools import cycle, islice

import numpy as np
import torch
from torch.utils.data import Sampler

# One number per sample.
Lengths = Sequence[int] | np.ndarray


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Split one megabatch into `num_chunks` batches of equal size and nearly equal total length.

    Args:
        indices: Samples of the megabatch, longest first.
        lengths: Length of every sample of the data set.
        num_chunks: Number of batches. If their sizes cannot be equal, every `num_chunks`-th sample goes to
            the same batch.
    """
    if len(indices) % num_chunks != 0:
        return [list(indices[start::num_chunks]) for start in range(num_chunks)]
    size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0.0] * num_chunks
    for index in indices:
        shortest = totals.index(min(totals))
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(chunks[shortest]) == size:
            totals[shortest] = float("inf")
    return chunks


def get_length_grouped_indices(
    lengths: Lengths, batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Return a random order of all samples in which each megabatch is sorted and split evenly.

    Args:
        lengths: One number per sample.
        batch_size: Samples in a batch.
        world_size: Batches in a megabatch (processes times accumulation steps).
        generator: Where the randomness comes from; torch's global one if None.
    """
    every = np.asarray(lengths)
    shuffled = torch.randperm(len(every), generator=generator).numpy()
    order: list[int] = []
    for megabatch in _cut(shuffled, batch_size * world_size):
        sizes = every[megabatch]
        longest_first = np.argsort(-sizes, kind="stable").tolist()
        for chunk in split_to_even_chunks(longest_first, sizes.tolist(), world_size):
            order += megabatch[chunk].tolist()
    return order


def get_modality_length_grouped_indices(
    lengths: Lengths, batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Group as `get_length_grouped_indices`, but mix the modalities in the last megabatch only.

    The two shuffles within the modalities use torch's global generator, whatever `generator` is; only the
    order of the megabatches uses `generator`. The remainders of both modalities end the epoch.

    Args:
        lengths: One signed number per sample, negative without an image, never zero.
        batch_size: Samples in a batch.
        world_size: Batches in a megabatch (processes times accumulation steps).
        generator: Where the order of the megabatches comes from; torch's global one if None.

    Raises:
        ValueError: A length is zero, so its sign does not give the modality.
    """
    signed = np.asarray(lengths)
    if not signed.all():
        raise ValueError(
            f"sample {np.flatnonzero(signed == 0)[0]} has length 0, which has no sign to give its modality"
        )
    with_image, text_only = np.flatnonzero(signed > 0), np.flatnonzero(signed < 0)
    if not len(with_image) or not len(text_only):
        return get_length_grouped_indices(lengths, batch_size, world_size, generator)

    megabatches: list[np.ndarray] = []
    leftovers: list[int] = []
    for members in (with_image, text_only):
        sizes = np.abs(signed[members])
        grouped = members[get_length_grouped_indices(sizes, batch_size, world_size)]
        *whole, last = _cut(grouped, batch_size * world_size)
        megabatches += whole
        leftovers += last.tolist()
    order = torch.randperm(len(megabatches), generator=generator).tolist()
    return [index for number in order for index in megabatches[number].tolist()] + sorted(leftovers)


class LengthGroupedSampler(Sampler[int]):
    """A sampler by length, or by length and modality; each iteration draws a new order."""

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Lengths,
        generator: torch.Generator | None = None,
        *,
        group_by_modality: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = lengths
        self._generator = generator
        self.group_by_modality = group_by_modality

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        group = get_modality_length_grouped_indices if self.group_by_modality else get_length_grouped_indices
        return iter(group(self.lengths, self.batch_size, self.world_size, self._generator))


class EpochSampler(Sampler[int]):
    """A sampler that makes another sampler's order depend on (seed, epoch) only.

    The inner sampler draws from torch's global generator, which is forked here and seeded with `seed`. So
    every rank computes the same order, dropout cannot change it, and a run that resumes in epoch 3 gets the
    order it would have had. Numbers are drawn as in the original's single process: before each order, the
    data loader draws the base seed of its workers.

    A sampler that draws from elsewhere is asked once an epoch, and keeps its order while it is needed.
    """

    def __init__(self, inner: Sampler[int], *, seed: int) -> None:
        if not isinstance(inner, Sized):
            raise TypeError(f"{type(inner).__name__} has no length")
        self.inner = inner
        self.seed = seed
        self.epoch = 0
        self._size = len(inner)
        self._orders: dict[int, list[int]] = {}
        self._next = 0  # the epoch to draw next, and the state of the random numbers then
        self._random: torch.Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counting from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        if self.epoch not in self._orders:
            self._draw_orders()
        return iter(self._orders[self.epoch])

    def _draw_orders(self) -> None:
        """Draw the orders up to this epoch's; keep it and the one before, whose end may be carried over."""
        with torch.random.fork_rng(devices=[]):
            if self._random is None or self.epoch < self._next:
                torch.manual_seed(self.seed)
                self._next = 0
            else:
                torch.set_rng_state(self._random)
            while self._next <= self.epoch:
                torch.empty((), dtype=torch.int64).random_()
                self._orders[self._next] = list(self.inner)
                self._next += 1
            self._random = torch.get_rng_state()
        self._orders = {epoch: self._orders[epoch] for epoch in self._orders if 0 <= self.epoch - epoch < 2}


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch for all ranks in turn, in whole optimizer steps.

    Batches that end an epoch without filling a step begin the next epoch, as the original's accumulated
    gradients do. An epoch with fewer batches than a step has is one smaller step.
    """

    def __init__(
        self, order: EpochSampler, batch_size: int, *, ranks: int, accumulation: int, drop_last: bool = False
    ) -> None:
        """Cut the samples of an order into batches.

        Args:
            order: The samples of each epoch.
            batch_size: Samples in a rank's batch.
            ranks: Number of ranks; each takes every `ranks`-th batch.
            accumulation: Batches of a rank in an optimizer step.
            drop_last: Whether to leave out samples that do not fill a batch on every rank.
        """
        self.order, self.batch_size, self.drop_last = order, batch_size, drop_last
        self._ranks, self._accumulation = ranks, accumulation
        self._epoch = 0
        share = len(order) / (batch_size * ranks)
        self._batches = math.floor(share) if drop_last else math.ceil(share)

    @property
    def full_steps(self) -> int:
        """The steps that an epoch fills by itself, at least one."""
        return max(self._batches // self._accumulation, 1)

    def steps_before(self, epoch: int) -> int:
        """Return how many steps there are before an epoch."""
        if self._batches <= self._accumulation:
            return epoch
        return epoch * self._batches // self._accumulation

    def steps_in(self, epoch: int) -> int:
        """Return how many steps end in an epoch."""
        return self.steps_before(epoch + 1) - self.steps_before(epoch)

    def batches_in(self, epoch: int) -> int:
        """Return how many batches of a rank an epoch's steps take."""
        if self._batches <= self._accumulation:
            return self._batches
        return self.steps_in(epoch) * self._accumulation

    def epoch_of(self, steps: int) -> int:
        """Return the epoch, from 0, in which the step after `steps` steps ends."""
        if self._batches <= self._accumulation:
            return steps
        return ((steps + 1) * self._accumulation - 1) // self._batches

    def epochs_after(self, steps: int) -> float:
        """Return how many epochs `steps` steps are."""
        if self._batches <= self._accumulation:
            return float(steps)
        epochs, rest = divmod(steps * self._accumulation, self._batches)
        return epochs + rest / self._batches

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counting from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches * self._ranks

    def __iter__(self) -> Iterator[list[int]]:
        if self._batches <= self._accumulation:
            return iter(self._cut_epoch(self._epoch))
        first, end = (self.steps_before(self._epoch + more) * self._accumulation for more in (0, 1))
        begun = self._epoch * self._batches
        carried = self._cut_epoch(self._epoch - 1)[(first - begun) * self._ranks :] if first < begun else []
        return iter([*carried, *self._cut_epoch(self._epoch)[: (end - begun) * self._ranks]])

    def _cut_epoch(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch; several ranks' are filled from its start, as accelerate does."""
        self.order.set_epoch(epoch)
        samples = list(self.order)
        size = self._batches * self._ranks * self.batch_size
        if self._ranks > 1:
            samples = [*islice(cycle(samples), size)]
        batches = [samples[start : start + self.batch_size] for start in range(0, size, self.batch_size)]
        return [batch for batch in batches if batch]


def _cut(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[start : start + size] for start in range(0, len(items), size)]
