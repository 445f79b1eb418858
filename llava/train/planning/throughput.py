"""Measure a run's throughput, utilisation and remaining time between two lines of the log.

Padding and blank placeholder images are not counted, so rates compare across recipes. Counts stay on the
device until they are logged, so that counting never waits for a GPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.dataset import count_learnable
from llava.data.pack import count_positions
from llava.train.planning.flops import TrainingFlops, peak_rate, training_flops

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)

_SECONDS_AN_HOUR = 3600


def count_batch(batch: Mapping[str, torch.Tensor], *, image_positions: int, max_length: int) -> torch.Tensor:
    """Count a batch: samples, positions, sum of squared lengths, supervised positions, images.

    Args:
        batch: A collated batch with `input_ids`, `labels` and `attention_mask`, each (B, L).
        image_positions: Positions that one image takes.
        max_length: Samples are truncated to this many positions.

    Returns:
        (5,) int64 on the batch's device.
    """
    ids = batch["input_ids"]
    positions = count_positions(
        ids, batch["attention_mask"], image_positions=image_positions, max_length=max_length
    )
    supervised = count_learnable(ids, batch["labels"], image_positions=image_positions, max_length=max_length)
    samples, images = positions.new_tensor(len(ids)), (ids == IMAGE_TOKEN_INDEX).sum()
    return torch.stack([samples, positions.sum(), (positions**2).sum(), supervised.sum(), images])


class Meter:
    """Counter of batches and time from one reading to the next.

    The time of validation and checkpoints counts towards the hours left, but not towards the rates.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        image_positions: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start to count.

        Args:
            model: The trained model, without DDP's or DeepSpeed's wrapper.
            args: The training flags.
            image_positions: Positions that one image takes.
            clock: Returns the time in seconds.
        """
        self._model = model
        self._args = args
        self._image_positions = image_positions
        self._clock = clock
        self.begin(0)

    def begin(self, step: int) -> None:
        """Reset all counts; `step` is the last step done."""
        self._first_step = step
        self._begun = self._since = self._clock()
        self._paused = 0.0
        self._counts = torch.zeros(5, dtype=torch.int64)

    def count(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Add a batch that is about to be trained on."""
        counts = count_batch(
            batch, image_positions=self._image_positions, max_length=self._args.model_max_length
        )
        self._counts = self._counts.to(counts.device) + counts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the block's time from the rates."""
        _finish_queued_work()
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(
        self, step: int, last_step: int, total: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, float]:
        """Return what is logged beside the loss, and start the next reading.

        Args:
            step: Number of steps done.
            last_step: Number of steps after which the run ends.
            total: Sums a tensor over all ranks, each of which must call this.
        """
        now = self._clock()
        seconds = now - self._since - self._paused
        counts = total(self._counts.to(self._args.device)).tolist()
        seconds_per_step = (now - self._begun) / max(step - self._first_step, 1)
        logs = rates(counts, seconds, training_flops(self._model), _total_peak(self._args))
        logs["hours_left"] = round(seconds_per_step * (last_step - step) / _SECONDS_AN_HOUR, 2)
        self._since, self._paused, self._counts = self._clock(), 0.0, torch.zeros_like(self._counts)
        return logs


def rates(counts: list[int], seconds: float, flops: TrainingFlops, peak: float) -> dict[str, float]:
    """Return the rates of what was counted, and the model FLOPs utilisation from 0 to 1.

    Args:
        counts: Sums of `count_batch` over all ranks.
        seconds: Time spent on training.
        flops: Operations of the model, without recomputed activations.
        peak: Peak operations a second of all devices together.
    """
    samples, positions, pairs, supervised, images = counts
    done = flops.position * positions + flops.pair * pairs + flops.logit * supervised + flops.image * images
    values = {
        "tokens_per_second": positions,
        "supervised_tokens_per_second": supervised,
        "images_per_second": images,
        "samples_per_second": samples,
        "mfu": done / peak,
    }
    return {name: rounded(value / seconds) for name, value in values.items()}


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def _total_peak(args: TrainingArguments) -> float:
    return _peak(args.device, args.compute_dtype) * args.world_size


@cache
def _peak(device: torch.device, dtype: torch.dtype) -> float:
    rate, source = peak_rate(device, dtype)
    logger.info("mfu is relative to %.4g operations a second per device (%s)", rate, source)
    return rate


def _finish_queued_work() -> None:
    """Wait for the GPU, so that the clock includes the work queued so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
