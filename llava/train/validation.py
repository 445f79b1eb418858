"""Validation losses: over all held-out data, and for each kind of question.

A loss is the mean over all supervised positions, so it does not depend on ranks or recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from llava.data.collate import NOTES, Batch
from llava.data.dataset import count_learnable
from llava.data.mixture import TrainingData
from llava.errors import SettingsError
from llava.prompts.kinds import kinds


def mean_losses(sums: np.ndarray, counts: np.ndarray, kinds_of: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `loss` over all samples and `loss/KIND` for each kind that has supervised positions.

    Args:
        sums: (N,), the sum of each sample's losses over its supervised positions.
        counts: (N,), how many positions that is.
        kinds_of: The kinds of each sample, which counts in all of them.
    """
    members: dict[str, list[int]] = {"loss": list(range(len(kinds_of)))}
    for index, names in enumerate(kinds_of):
        for name in names:
            members.setdefault(f"loss/{name}", []).append(index)
    totals = {
        name: (sums[indices].sum(dtype=np.float64), counts[indices].sum())
        for name, indices in members.items()
    }
    return {name: float(total / count) for name, (total, count) in totals.items() if count > 0}


class ValidatingTrainer(Trainer):
    """transformers' Trainer, except that evaluation returns mean losses by kind of question.

    It runs one sample at a time: the sample's mean loss times its supervised positions is exact, and at a
    real model's size one sample keeps a GPU busy.
    """

    def __init__(self, *, image_positions: int, **settings: object) -> None:
        """Create a trainer with the arguments of transformers' Trainer.

        Args:
            image_positions: Number of positions that one image takes.
            settings: Arguments of transformers' Trainer. With an `eval_dataset` that is not
                `TrainingData`, evaluation is transformers'.
        """
        self._image_positions = image_positions
        super().__init__(**settings)
        self._by_kind = isinstance(self.eval_dataset, TrainingData)
        if self._by_kind:
            self.compute_metrics = self._mean_losses
            if self.args.metric_for_best_model:
                self._require_metric(self.args.metric_for_best_model)

    def evaluate(self, *args: object, **settings: object) -> dict[str, float]:
        """Evaluate as transformers does, without changing training's random state."""
        with torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **settings)
        return metrics

    def prediction_step(
        self, model: PreTrainedModel, inputs: Batch, *rest: object, **settings: object
    ) -> tuple[torch.Tensor | None, ...]:
        """Return None, the sum of one sample's losses (1,) and its number of supervised positions (1,)."""
        if not self._by_kind:
            return super().prediction_step(model, inputs, *rest, **settings)
        inputs.pop(NOTES, None)
        inputs = self._prepare_inputs(inputs)
        assert len(inputs["input_ids"]) == 1, "the mean over several samples hides each sample's own"
        count = self._learnable(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            mean = model(**inputs).loss.float()
        return None, torch.where(count > 0, mean * count, 0.0), count

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader[Batch]:
        """Load one sample at a time and in order, so that results match samples on any number of ranks."""
        if not self._by_kind:
            return super().get_eval_dataloader(eval_dataset)
        loader: DataLoader[Batch] = self._get_dataloader(
            dataset=self.eval_dataset if eval_dataset is None else eval_dataset,
            description="Evaluation",
            batch_size=1,
            sampler_fn=SequentialSampler,
        )
        return loader

    def _require_metric(self, asked: str) -> None:
        """Check that validation gives the loss by which checkpoints are compared.

        Raises:
            SettingsError: No sample is of the kind it names.
        """
        known = {"loss", *(f"loss/{kind}" for sample in self.eval_dataset.samples for kind in kinds(sample))}
        if asked.removeprefix("eval_") not in known:
            names = ", ".join(f"eval_{name}" for name in sorted(known))
            raise SettingsError(
                f"--metric_for_best_model {asked}: the validation data has {names}",
                code="unknown-metric",
            )

    def _learnable(self, inputs: Batch) -> torch.Tensor:
        """Count the supervised positions of each sample, (B,), after truncation."""
        return count_learnable(
            inputs["input_ids"],
            inputs["labels"],
            image_positions=self._image_positions,
            max_length=self.args.model_max_length,
        )

    def _mean_losses(self, results: EvalLoopOutput) -> dict[str, float]:
        kinds_of = [kinds(sample) for sample in self.eval_dataset.samples]
        return mean_losses(results.predictions, results.label_ids, kinds_of)
