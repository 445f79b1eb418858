"""How fast a run learns: rates, utilisation and time left, measured between two lines of the log.

Counted is what the samples hold, wherever a recipe puts it: padding never counts, nor does a blank image that
stands for none. Between two lines nothing is waited for: counts stay on the device until they are read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.dataset import count_learnable
from llava.data.pack import count_positions
from llava.train.planning.flops import TrainingFlops, peak_rate, training_flops

logger = logging.getLogger(__name__)

_SECONDS_AN_HOUR = 3600


def count_batch(batch: Mapping[str, Any], *, image_positions: int, max_length: int) -> torch.Tensor:
    """(5,) int64 on the batch's device: samples, positions, their squares' sum, supervised positions, images.

    Args:
        batch: As collated: `input_ids`, `labels` and `attention_mask`, each (B, L).
        image_positions: Positions one image takes.
        max_length: Positions after which a sample is cut.
    """
    ids = batch["input_ids"]
    positions = count_positions(
        ids, batch["attention_mask"], image_positions=image_positions, max_length=max_length
    )
    supervised = count_learnable(ids, batch["labels"], image_positions=image_positions, max_length=max_length)
    samples, images = positions.new_tensor(len(ids)), (ids == IMAGE_TOKEN_INDEX).sum()
    return torch.stack([samples, positions.sum(), (positions**2).sum(), supervised.sum(), images])


class Meter:
    """Counts batches and time from one reading to the next.

    Validation and checkpoints take time that counts to the hours left, but not to rates.
    """

    def __init__(
        self, model: Any, args: Any, *, image_positions: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begin to count.

        Args:
            model: What is trained, without the wrappers of several processes.
            args: The flags: device, precision, number of processes, length of a sample.
            image_positions: Positions one image takes.
            clock: Seconds from some moment on.
        """
        self._model = model
        self._args = args
        self._image_positions = image_positions
        self._clock = clock
        self.begin(0)

    def begin(self, step: int) -> None:
        """Forget what was counted; `step` is the last one that is done."""
        self._first_step = step
        self._begun = self._since = self._clock()
        self._paused = 0.0
        self._counts = torch.zeros(5, dtype=torch.int64)

    def count(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that is going to be learned from."""
        counts = count_batch(
            batch, image_positions=self._image_positions, max_length=self._args.model_max_length
        )
        self._counts = self._counts.to(counts.device) + counts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out of the rates."""
        _finish_queued_work()
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def read(
        self, step: int, last_step: int, total: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, float]:
        """What is logged beside the loss; a new reading begins.

        Args:
            step: Steps that are done.
            last_step: After which the run ends.
            total: Sums a tensor over all processes, each of which must call this.
        """
        now = self._clock()
        seconds = now - self._since - self._paused
        counts = total(self._counts.to(self._args.device)).tolist()
        of_a_step = (now - self._begun) / max(step - self._first_step, 1)
        logs = rates(counts, seconds, training_flops(self._model), _peak_of_all(self._args))
        logs["hours_left"] = rounded(of_a_step * (last_step - step) / _SECONDS_AN_HOUR)
        self._since, self._paused, self._counts = self._clock(), 0.0, torch.zeros_like(self._counts)
        return logs


def rates(counts: list[int], seconds: float, flops: TrainingFlops, peak: float) -> dict[str, float]:
    """Rates of what was counted, see `count_batch`, and the model FLOPs utilisation as a part of 1.

    Args:
        counts: Of all processes.
        seconds: In which it was learned from.
        flops: Operations by what they grow with; those of recomputed activations are not in it.
        peak: Operations a second of all devices.
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
    """To four digits: a rate has no more that mean something."""
    return float(f"{value:.4g}")


def _peak_of_all(args: Any) -> float:
    return _peak(args.device, args.compute_dtype) * args.world_size


@cache
def _peak(device: torch.device, dtype: torch.dtype) -> float:
    rate, source = peak_rate(device, dtype)
    logger.info("mfu is of %.4g operations a second and device (%s)", rate, source)
    return rate


def _finish_queued_work() -> None:
    """Let a GPU finish what it has been told, so that a clock read now tells the time this took."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
