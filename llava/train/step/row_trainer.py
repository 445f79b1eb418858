"""Compute each batch in the recipe's rows, and with less memory where it runs out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from functools import partial

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from llava.data.collate import NOTES, Batch, Note
from llava.errors import LlavaError, SettingsError
from llava.model.in_memory import try_in_memory
from llava.model.recipe import Recipe
from llava.prompts.labels import ANSWER_CUT_AWAY
from llava.train.planning.recompute import recompute_first, take_less_memory
from llava.train.step.rows import accumulate_gradients, rows_of
from llava.train.validation import ValidatingTrainer

logger = logging.getLogger(__name__)


class TrainingError(LlavaError):
    """The loss or the gradient is NaN or infinite."""


class RowTrainer(ValidatingTrainer):
    """Splits a batch into the recipe's rows, and stops the run if a loss or a gradient is not finite.

    A sample without a supervised label (no answer, for example) stays in its batch, as in the original, and
    does not count in the mean.

    When memory runs out, more layers are recomputed, then rows are shorter; both give the same losses. The
    optimizer step starts again. Several ranks would wait for each other then, and DeepSpeed has the
    gradients: there the run ends with an error.

    Attributes:
        has_own_flags: Whether the arguments are this package's; with others, batches are not split.
        recipe: The shortcuts of a step.
        problems: How often samples taught nothing, by reason; the first of each is logged with its id.
        refused: Why `--bad_samples error` does not allow the run to continue; empty if it does.
        has_learned: Whether this rank had any supervised label in the steps so far; None before the first.
    """

    has_own_flags: bool
    recipe: Recipe

    def __init__(self, *, image_positions: int, **settings: object) -> None:
        """Create a trainer with the arguments of `ValidatingTrainer`."""
        self.problems: Counter[str] = Counter()
        self.refused: list[str] = []
        self.has_learned: bool | None = None
        self._learned_now: list[Note] = []
        self._begun: list[Batch] = []  # batches of the optimizer step, up to the present one
        super().__init__(image_positions=image_positions, **settings)

    def get_batch_samples(self, *args: object) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Return the batches of one optimizer step."""
        batches, items = super().get_batch_samples(*args)
        self._learned_now = [note for batch in batches for note in batch.get(NOTES, [])]
        self._begun = []
        return batches, items

    def training_step(self, model: PreTrainedModel, inputs: Batch, *rest: object) -> torch.Tensor:
        """Run forward and backward for one batch; return the loss, ().

        In fp16 a loss that is not finite is only logged: the loss scaler skips such a step and lowers the
        scale.

        Raises:
            TrainingError: The loss is NaN or infinite.
            SettingsError: A step does not fit into memory.
        """
        if not self.has_own_flags:
            whole: torch.Tensor = super().training_step(model, inputs, *rest)
            return whole
        notes, learnable = inputs.get(NOTES, []), self._learnable(inputs)
        self._count_problems(notes, inputs, learnable)
        self._begun.append(inputs)
        rows = try_in_memory(partial(self._compute_rows, model, inputs))
        while rows is None:
            self._take_less_memory(model)
            rows = try_in_memory(partial(self._compute_again, model))
        losses = torch.stack([loss for loss, _ in rows])
        values = losses.tolist()  # here the step waits for a GPU, once
        for value, (_, noted) in zip(values, rows, strict=True):
            if not math.isfinite(value):
                self._stop_not_finite(f"the loss is {value} on samples {_ids(noted)}")
        if sum(values) == 0.0 and int(learnable.sum()) == 0:
            logger.warning("step %d: nothing to learn in samples %s", self.state.global_step + 1, _ids(notes))
            self.has_learned = self.has_learned or False
        else:
            self.has_learned = True
        return losses.sum()

    def _compute_rows(self, model: PreTrainedModel, batch: Batch) -> list[tuple[torch.Tensor, list[Note]]]:
        """Run forward and backward for each row of a batch; return its loss, (), and its samples' notes."""
        rows = rows_of(
            dict(batch),
            self.recipe,
            supervised=self._learnable(batch).sum(),
            image_positions=self._image_positions,
            max_length=self.args.model_max_length,
        )
        notes = [row.pop(NOTES, []) for row in rows]
        losses = []
        for row in rows[:-1]:
            with accumulate_gradients(self.accelerator, model):
                losses.append(super().training_step(model, row))
        losses.append(super().training_step(model, rows[-1]))
        return list(zip(losses, notes, strict=True))

    def _compute_again(self, model: PreTrainedModel) -> list[tuple[torch.Tensor, list[Note]]]:
        """Start the optimizer step again, up to the present batch; return what that batch gives."""
        model.zero_grad()
        return [self._compute_rows(model, batch) for batch in self._begun][-1]

    def _take_less_memory(self, model: PreTrainedModel) -> None:
        """Compute with less memory from here on.

        Raises:
            SettingsError: It takes as little as it can, or is not the only rank.
        """
        base, step = self.accelerator.unwrap_model(model), self.state.global_step + 1
        smaller = None
        if self.args.world_size == 1 and not self.is_deepspeed_enabled:
            can_recompute = self.args.activation_checkpointing
            smaller = take_less_memory(
                self.recipe, len(base.get_decoder().layers), can_recompute=can_recompute
            )
        if smaller is None:
            raise SettingsError(
                f"step {step}: out of memory; give --gradient_checkpointing True --checkpoint_layers all, a "
                "lower --micro_batch_tokens or --per_device_train_batch_size, or --bits 4 (LoRA)",
                code="out-of-memory",
            )
        self.recipe, layers = smaller, smaller.checkpoint_layers
        if self.args.activation_checkpointing and isinstance(layers, int):
            recompute_first(base, layers)
        torch.cuda.empty_cache()
        logger.warning(
            "step %d: out of memory; it starts again, from here on with %s layers recomputed and rows of %s",
            *(step, layers, self.recipe.micro_batch_tokens or "any length"),
        )

    def compute_loss(
        self, model: PreTrainedModel, inputs: Batch, *rest: object, **settings: object
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Return the model's loss.

        Raises:
            TrainingError: It is NaN or infinite, and the arguments are not this package's, whose
                `training_step` checks it.
        """
        notes = inputs.pop(NOTES, [])
        result = super().compute_loss(model, inputs, *rest, **settings)
        if not self.has_own_flags:
            loss = result[0] if isinstance(result, tuple) else result
            if not torch.isfinite(loss).all():
                self._stop_not_finite(f"the loss is {loss.detach().mean().item()} on samples {_ids(notes)}")
        return result

    def _get_grad_norm(
        self, model: PreTrainedModel, *args: object, **settings: object
    ) -> torch.Tensor | float | None:
        """Return the gradient's norm, and check before the optimizer step that it is finite.

        Not under DeepSpeed, which has already made the step. In fp16 the loss scaler skips the step, so a
        norm that is not finite is only logged.

        Raises:
            TrainingError: The norm is NaN or infinite.
        """
        norm = super()._get_grad_norm(model, *args, **settings)
        if norm is not None and not self.is_deepspeed_enabled and not math.isfinite(norm):
            self._stop_not_finite(
                f"the gradient's norm is {float(norm)} on samples {_ids(self._learned_now)}"
            )
        return norm

    def _stop_not_finite(self, problem: str) -> None:
        problem = f"step {self.state.global_step + 1}: {problem}"
        if not self.args.fp16:
            raise TrainingError(
                f"{problem}; lower --learning_rate, or check these samples", code="not-finite"
            )
        logger.warning("%s; fp16's loss scaler skips such a step", problem)

    def _count_problems(self, notes: list[Note], inputs: Batch, learnable: torch.Tensor) -> None:
        """Count samples that teach nothing, including those whose image pushes the answer past the end."""
        may_cut = inputs["input_ids"].shape[1] + self._image_positions > self.args.model_max_length
        # Only looked at where it can happen: it makes the GPU wait.
        left = learnable.tolist() if may_cut else [1] * len(notes)
        self.refused += [refused for _, _, refused in notes if refused]
        for (identifier, noted, _), count in zip(notes, left, strict=bool(notes)):
            problem = noted or (None if count else ANSWER_CUT_AWAY)
            if problem is None:
                continue
            if problem not in self.problems:
                logger.warning(
                    "sample %r teaches nothing: %s; more such samples are counted", identifier, problem
                )
            self.problems[problem] += 1


def _ids(notes: list[Note]) -> str:
    return ", ".join(repr(identifier) for identifier, _, _ in notes) or "of this batch"
