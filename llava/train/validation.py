"""Losses on data that is not learned from: of all of it, and of each kind of question.

The loss is the mean over all supervised positions of the data, whatever process or recipe they fall to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer

from llava.data.collate import NOTES
from llava.data.dataset import count_learnable
from llava.prompts.kinds import kinds


def mean_losses(sums: np.ndarray, counts: np.ndarray, kinds_of: Sequence[Sequence[str]]) -> dict[str, float]:
    """`loss` of all samples and `loss/KIND` of each kind; none of a kind that has nothing to learn.

    Args:
        sums: (N,), each sample's losses summed over its supervised positions.
        counts: (N,), how many positions these are.
        kinds_of: The kinds of each sample; it counts in each of them.
    """
    members: dict[str, list[int]] = {"loss": list(range(len(kinds_of)))}
    for place, names in enumerate(kinds_of):
        for name in names:
            members.setdefault(f"loss/{name}", []).append(place)
    totals = {
        name: (sums[places].sum(dtype=np.float64), counts[places].sum()) for name, places in members.items()
    }
    return {name: float(total / count) for name, (total, count) in totals.items() if count > 0}


class ValidatingTrainer(Trainer):
    """transformers' Trainer, whose evaluation gives mean losses by kind of question.

    It goes through one sample at a time: a sample's mean loss times its supervised positions is exact, and at
    a model's true size a single one keeps a GPU busy.
    """

    def __init__(self, *, image_positions: int, **settings: Any) -> None:
        """Take what transformers' Trainer takes.

        Args:
            image_positions: Positions one image takes.
            settings: Of transformers' Trainer; `eval_dataset` is a `LazySupervisedDataset` or None.
        """
        self._image_positions = image_positions
        super().__init__(**settings)
        self.compute_metrics = self._mean_losses

    def evaluate(self, *args: Any, **settings: Any) -> dict[str, float]:
        """As transformers'; what is drawn at random meanwhile changes nothing for the training."""
        with torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **settings)
        return metrics

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *rest: Any, **settings: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """One sample's losses summed up, (1,), and the positions they are of, (1,)."""
        inputs.pop(NOTES, None)
        inputs = self._prepare_inputs(inputs)
        assert len(inputs["input_ids"]) == 1, "the mean of several samples hides the mean of each"
        count = self._learnable(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            mean = model(**inputs).loss.float()
        return None, torch.where(count > 0, mean * count, 0.0), count

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """One sample at a time and in order, which is how results belong to samples, also over processes."""
        loader: DataLoader[Any] = self._get_dataloader(
            dataset=self.eval_dataset if eval_dataset is None else eval_dataset,
            description="Evaluation",
            batch_size=1,
            sampler_fn=SequentialSampler,
        )
        return loader

    def _learnable(self, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,), how many labels of each sample of a batch are left to learn."""
        return count_learnable(
            inputs["input_ids"],
            inputs["labels"],
            image_positions=self._image_positions,
            max_length=self.args.model_max_length,
        )

    def _mean_losses(self, results: Any) -> dict[str, float]:
        kinds_of = [kinds(sample) for sample in self.eval_dataset.samples]
        return mean_losses(results.predictions, results.label_ids, kinds_of)
