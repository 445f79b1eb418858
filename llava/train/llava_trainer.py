"""A Trainer with the original's sample order, learning rates and loss; it saves what a run's kind needs.

Source: LLaVA v1.2.2 llava/train/llava_trainer.py.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from peft import PeftModel
from torch.utils.data import RandomSampler, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers import TrainingArguments as HfArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import has_length

from llava.compat.state import get_mm_adapter_state_maybe_zero_3 as get_mm_adapter_state_maybe_zero_3
from llava.compat.state import maybe_zero_3 as maybe_zero_3
from llava.compat.trainer import TakesOldOverrides
from llava.data.collate import Batch
from llava.data.mixture import TrainingData
from llava.data.sampler import EpochSampler, LengthGroupedSampler
from llava.data.sampler import get_length_grouped_indices as get_length_grouped_indices
from llava.data.sampler import get_modality_length_grouped_indices as get_modality_length_grouped_indices
from llava.data.sampler import split_to_even_chunks as split_to_even_chunks
from llava.model.fused import fuse_layers
from llava.model.language_model.llava_llama import LlavaConfig
from llava.model.loading.checkpoint import Kind
from llava.model.overrides import find_change
from llava.model.packed_attention import enable_packing
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.checkpoints import Checkpoints
from llava.train.checkpointing.resume import SETTINGS
from llava.train.checkpointing.saving_trainer import SavingTrainer
from llava.train.plain_arguments import complete_arguments
from llava.train.planning.recompute import recompute_first
from llava.train.planning.throughput import Meter
from llava.train.reporters import LenientTensorBoard
from llava.train.step.epochs import EpochTrainer
from llava.train.step.fsdp import choose_fsdp, reshard
from llava.train.step.optimizer import make_loraplus, set_projector_rate
from llava.train.step.recipe import resolve_recipe
from llava.train.step.row_trainer import RowTrainer

logger = logging.getLogger(__name__)


class _Flow(TrainerCallback):
    """Record the flags, and save at the steps at which the original saves."""

    def __init__(self, trainer: LLaVATrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: HfArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        state.stateful_callbacks[SETTINGS] = {"args": args.learned_from, "attributes": {}}
        self._trainer.meter.begin(state.global_step)
        # A resumed state holds the intervals of the flags it was written with.
        state.compute_steps(args, state.max_steps)
        layers = self._trainer.recipe.checkpoint_layers
        if args.activation_checkpointing and isinstance(layers, int):
            recompute_first(self._trainer.accelerator.unwrap_model(self._trainer.model), layers)

    def on_step_end(
        self, args: HfArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        if (batches := self._trainer.batches) is not None:
            state.epoch = batches.epochs_after(state.global_step)
        # transformers 5 adds a checkpoint at the end; the final output already has these weights.
        is_last, is_due = (
            state.global_step >= state.max_steps,
            state.global_step % max(state.save_steps, 1) == 0,
        )
        if is_last and not is_due and control.should_save and str(args.save_strategy.value) == "steps":
            control.should_save = False


class LLaVATrainer(TakesOldOverrides, RowTrainer, EpochTrainer, SavingTrainer):
    """Train a model that `assemble` or another program has prepared, and save what its kind of run needs.

    With arguments other than this package's own `TrainingArguments`, it computes every step as the original
    does, and neither measures throughput nor counts samples that teach nothing.
    """

    optimizer: torch.optim.Optimizer | None
    is_fsdp_enabled: bool

    def __init__(
        self,
        model: PreTrainedModel,
        args: HfArguments,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **settings: object,
    ) -> None:
        """Create the trainer; `tokenizer` is the older name of transformers' `processing_class`.

        Args:
            model: A prepared model; its config, or `args.tune_mm_mlp_adapter`, says whether only the
                projector is trained.
            args: The flags.
            tokenizer: Saved beside a whole model; an adapter or projector keeps its base's.
            settings: train_dataset, eval_dataset, data_collator, ... for transformers' Trainer.
        """
        is_ours = isinstance(model.config, LlavaConfig)
        self.has_own_flags = isinstance(args, TrainingArguments)
        complete_arguments(args)
        self.kind: Kind = "full"
        if args.lora_enable or isinstance(model, PeftModel):
            self.kind = "adapter"
        elif getattr(args, "tune_mm_mlp_adapter", getattr(model.config, "tune_mm_mlp_adapter", None)):
            self.kind = "projector"
        self.checkpoints = Checkpoints(args)
        image_positions = getattr(model, "image_positions", 1)
        self.tokenizer = tokenizer
        # With a tokenizer, transformers writes its special tokens into the config, which must fit the base.
        settings.setdefault("processing_class", tokenizer if self.kind == "full" else None)
        super().__init__(image_positions=image_positions, model=model, args=args, **settings)
        self.meter = Meter(model, args, image_positions=image_positions)
        # The original's loss is the mean over micro-batches and ranks of each micro-batch's mean.
        self.model_accepts_loss_kwargs = False
        change = find_change(model.get_base_model() if isinstance(model, PeftModel) else model)
        if is_ours and change is not None:
            logger.warning("%s: every step is computed as the original does", change)
        self.recipe = resolve_recipe(args, has_shortcuts=is_ours and change is None)
        if self.recipe.pack:
            enable_packing(model.config)
        if is_ours and (tower := model.get_vision_tower()) is not None:
            tower.runs_unread_layers = not self.recipe.skip_unread_layers
        if args.use_liger_kernel and is_ours:
            fuse_layers(model)
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(LenientTensorBoard)
        self.add_callback(_Flow(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, which shares out the model with FSDP2 if `--fsdp` asks for it."""
        if self.args.fsdp:  # else each rank holds whole gradients while they are accumulated
            config = self.args.accelerator_config
            given = config.gradient_accumulation_kwargs or {}
            config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}
        super().create_accelerator_and_postprocess()
        if self.args.fsdp or self.is_fsdp_enabled:
            choose_fsdp(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def set_recomputed_layers(self, count: int) -> None:
        """Recompute the activations of the first `count` layers of the language model from now on."""
        self.recipe = replace(self.recipe, checkpoint_layers=count)

    # ---- order and learning rates

    def _get_train_sampler(self, train_dataset: TrainingData | None = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        if dataset is None or not has_length(dataset):
            return super()._get_train_sampler(dataset)
        inner: Sampler[int]
        if args.group_by_modality_length or args.group_by_length:
            by_modality = args.group_by_modality_length
            inner = LengthGroupedSampler(
                args.train_batch_size,
                args.world_size * args.gradient_accumulation_steps,
                dataset.modality_lengths if by_modality else dataset.lengths,
                group_by_modality=by_modality,
            )
        else:
            inner = RandomSampler(dataset)
        return EpochSampler(inner, seed=args.order_seed)

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Create transformers' or LoRA+'s optimizer, with groups for a projector's own learning rate."""
        is_new = self.optimizer is None
        trained = self.model if model is None else model
        if is_new and self.args.loraplus_lr_ratio is not None:
            self.optimizer = make_loraplus(self.args, trained)
        optimizer = super().create_optimizer(model)
        if is_new:
            set_projector_rate(optimizer, trained, self.args)
        return optimizer

    # ---- what is logged

    def get_batch_samples(self, *args: object) -> tuple[list[Batch], torch.Tensor | int | None]:
        """Return the batches of one optimizer step, and count what is in them."""
        batches, items = super().get_batch_samples(*args)
        for batch in batches if self.has_own_flags else ():
            self.meter.count(batch)
        return batches, items

    def log(self, logs: dict[str, float], *rest: object, **settings: object) -> None:
        """Log, with throughput beside the loss. As in the original, the learning rate is the next step's."""
        if "learning_rate" in logs:
            logs["learning_rate"] = self._get_learning_rate()
        if "loss" in logs and self.has_own_flags:
            logs |= self.meter.read(self.state.global_step, self.state.max_steps, self.accelerator.reduce)
        super().log(logs, *rest, **settings)

    def evaluate(self, *args: object, **settings: object) -> dict[str, float]:
        """Return the losses on the held-out data; see `ValidatingTrainer`."""
        with self.meter.paused():
            metrics: dict[str, float] = super().evaluate(*args, **settings)
        if self.is_fsdp_enabled:
            reshard(self.model)
        return metrics
