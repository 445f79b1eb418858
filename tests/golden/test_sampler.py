"""The order of an epoch is the original's, and depends on seed and epoch alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import RandomSampler

from llava.data.sampler import (
    EpochBatches,
    EpochSampler,
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)

GROUPERS = {
    "modality": get_modality_length_grouped_indices,
    "length": get_length_grouped_indices,
}


def test_orders_equal_the_originals_for_every_size_and_seed(golden: Path) -> None:
    recorded = json.loads((golden / "ix_samplers.json").read_text())
    assert len(recorded["results"]) > 200
    for case in recorded["results"]:
        for name, group in GROUPERS.items():
            # The recording gave the plain grouping lengths without signs, and generators the next seed.
            lengths = [abs(length) for length in case["lengths"]] if name == "length" else case["lengths"]
            for mode in ("global_seed_generator_none", "generator"):
                torch.manual_seed(case["seed"])
                generator = torch.Generator().manual_seed(case["seed"] + 1) if mode == "generator" else None
                order = group(lengths, case["batch_size"], case["world_size"], generator)
                assert order == case[f"{name}/{mode}"], (name, mode, case["n"], case["kind"])


def test_chunks_equal_the_originals(golden: Path) -> None:
    for case in json.loads((golden / "ix_samplers.json").read_text())["split_to_even_chunks"]:
        assert split_to_even_chunks(case["indices"], case["lengths"], case["num_chunks"]) == case["out"]


@pytest.mark.parametrize(
    ("lengths", "order"),
    [
        (
            [10, -5, 7, 3, -8, 12, 4, -2, 9, 6, -1, 11, 5],
            [11, 6, 0, 9, 5, 3, 8, 12, 1, 2, 4, 7, 10],
        ),
        (
            [10, 5, 7, 3, 8, 12, 4, 2, 9, 6, 1, 11, 5],
            [5, 7, 11, 12, 4, 1, 2, 9, 8, 10, 6, 3, 0],
        ),
    ],
)
def test_known_orders_for_seed_42(lengths: list[int], order: list[int]) -> None:
    torch.manual_seed(42)
    assert get_modality_length_grouped_indices(lengths, 2, 2) == order


def test_a_length_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has length 0"):
        get_modality_length_grouped_indices([3, 0, -2], 1, 1)


def test_no_megabatch_but_the_last_mixes_modalities() -> None:
    lengths = [5 + i for i in range(40)] + [-3 - i for i in range(30)]
    torch.manual_seed(0)
    order = get_modality_length_grouped_indices(lengths, 4, 2)
    assert sorted(order) == list(range(70))
    for start in range(0, 48, 8):
        assert len({lengths[index] > 0 for index in order[start : start + 8]}) == 1


def _sampler(seed: int) -> EpochSampler:
    lengths = [5 + i % 7 for i in range(30)] + [-3 - i % 5 for i in range(20)]
    return EpochSampler(LengthGroupedSampler(4, 2, lengths, group_by_modality=True), seed=seed)


def test_an_epoch_has_one_order_whatever_was_drawn_before() -> None:
    first, second = _sampler(7), _sampler(7)
    for epoch in range(3):
        first.set_epoch(epoch)
        list(first)
        torch.rand(epoch + 5)
    second.set_epoch(2)
    assert list(first) == list(second)
    assert sorted(first) == list(range(50))
    assert list(_sampler(8)) != list(_sampler(7))


def test_the_sampler_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(_sampler(7))
    assert torch.equal(torch.rand(4), expected)


def test_a_plain_shuffle_is_seeded_too() -> None:
    sampler = EpochSampler(RandomSampler(range(20)), seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]


def originals_steps(epochs: list[list[list[int]]], accumulation: int) -> list[list[list[int]]]:
    """Group batches into optimizer steps as transformers 4.37 does, counting batches over the whole run."""
    steps, begun, count = [], [], 0
    for batches in epochs:
        for batch in batches:
            count += 1
            begun.append(batch)
            if count % accumulation == 0:
                steps.append(begun)
                begun = []
    return steps


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("samples", [48, 47, 40])
def test_steps_are_the_originals_over_epochs(samples: int, accumulation: int, ranks: int) -> None:
    order = EpochSampler(RandomSampler(range(samples)), seed=3)
    batches = EpochBatches(order, 5, ranks=ranks, accumulation=accumulation)
    per_epoch = len(batches) // ranks
    if per_epoch <= accumulation:
        pytest.skip("an epoch is one step")
    plain, made = [], []
    for epoch in range(6):
        order.set_epoch(epoch)
        samples_in_order = list(order)
        padded = samples_in_order + samples_in_order[: per_epoch * 5 * ranks - samples if ranks > 1 else 0]
        everyones = [padded[start : start + 5] for start in range(0, len(padded), 5)]
        plain.append(everyones[::ranks])
        batches.set_epoch(epoch)
        mine = list(batches)[::ranks]
        assert len(mine) == batches.batches_in(epoch) == batches.steps_in(epoch) * accumulation
        made += [mine[start : start + accumulation] for start in range(0, len(mine), accumulation)]
        assert len(made) == batches.steps_before(epoch + 1)
    assert made == originals_steps(plain, accumulation)[: len(made)]
    assert batches.full_steps == per_epoch // accumulation
    for step in range(len(made)):  # where a run that has done so many steps goes on
        epoch = batches.epoch_of(step)
        assert batches.steps_before(epoch) <= step < batches.steps_before(epoch + 1)
        assert batches.epochs_after(step) == pytest.approx(step * accumulation / per_epoch)


def test_an_epoch_shorter_than_a_step_is_one_step() -> None:
    batches = EpochBatches(EpochSampler(RandomSampler(range(12)), seed=0), 5, ranks=1, accumulation=4)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert (batches.full_steps, batches.steps_before(3), batches.epoch_of(3)) == (1, 3, 3)
    assert (batches.batches_in(1), batches.epochs_after(2)) == (3, 2.0)
