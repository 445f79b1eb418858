"""Rates are counts over time, without the time of validation and checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llava.train.planning import throughput as module
from llava.train.planning.flops import TrainingFlops
from llava.train.planning.throughput import Meter, count_batch, rates

FLOPS = TrainingFlops(position=1000.0, pair=1.0, logit=10.0, image=500.0)


def batch() -> dict[str, torch.Tensor]:
    """Return an image sample with an answer and a text of 10 positions, both of length 10."""
    ids = torch.tensor([[1, -200, 5, 6, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]])
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 6:] = 6, 7
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def test_padding_and_truncated_positions_are_not_counted() -> None:
    assert count_batch(batch(), image_positions=4, max_length=8).tolist() == [2, 7 + 8, 49 + 64, 1 + 2, 1]
    assert count_batch(batch(), image_positions=4, max_length=6).tolist() == [2, 6 + 6, 36 + 36, 0, 1]


def test_utilisation_is_relative_to_the_peak_of_the_devices() -> None:
    logged = rates([4, 300, 25_000, 30, 2], 2.0, FLOPS, peak=1e6)
    assert logged == {
        "tokens_per_second": 150,
        "supervised_tokens_per_second": 15,
        "images_per_second": 1,
        "samples_per_second": 2,
        "mfu": pytest.approx((300_000 + 25_000 + 300 + 1000) / 2 / 1e6, rel=1e-3),
    }


class Clock:
    """A clock that returns the seconds it is set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_paused_time_counts_towards_hours_left_but_not_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "training_flops", lambda model: FLOPS)
    monkeypatch.setattr(module, "_peak", lambda *_: 1e6)
    args: Any = SimpleNamespace(
        device=torch.device("cpu"), compute_dtype=torch.float32, world_size=2, model_max_length=8
    )
    clock = Clock()
    meter = Meter(nn.Identity(), args, image_positions=4, clock=clock)
    clock.now = 100.0  # the time before training starts is not counted
    meter.begin(10)
    meter.count(batch())
    clock.now += 5
    with meter.paused():
        clock.now += 3600
    first = meter.read(20, 30, lambda counts: 2 * counts)
    assert first["tokens_per_second"] == 2 * 15 / 5
    assert first["hours_left"] == 1.0  # 3605 s
    meter.count(batch())
    meter.count(batch())
    clock.now += 2
    second = meter.read(30, 30, lambda counts: counts)
    assert second["samples_per_second"] == 2
    assert second["hours_left"] == 0
