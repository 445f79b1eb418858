"""Make the original's optimizer steps of an epoch: as many as it fills with accumulated batches."""

from __future__ import annotations

import math
from collections.abc import Sized
from functools import partial

from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import seed_worker

from llava.data.collate import Batch
from llava.data.sampler import EpochBatches, EpochSampler
from llava.errors import SettingsError
from llava.train.checkpointing.signals import leave_signals_to_parent


class EpochTrainer(Trainer):
    """transformers' Trainer, except that an epoch's last batches are carried over if they fill no step.

    They begin the first step of the next epoch; at the end of the last one they are not used. transformers 5
    makes a smaller step of them, so its runs have more steps and other learning rates.

    Source: transformers 4.37.2 trainer.py.

    Attributes:
        batches: The batches of an epoch; None if the data has no length.
    """

    batches: EpochBatches | None = None

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of whole steps, whose workers ignore the signals that stop a run after a step."""
        args = self.args
        order: Sampler[int] | None = self._get_train_sampler()
        if not isinstance(order, Sized) or args.remove_unused_columns:
            return super().get_train_dataloader()
        if not isinstance(order, EpochSampler):  # a subclass's
            order = EpochSampler(order, seed=args.order_seed)
        self.batches = EpochBatches(
            order,
            args.train_batch_size,
            ranks=args.world_size,
            accumulation=args.gradient_accumulation_steps,
            drop_last=args.dataloader_drop_last,
        )
        if not len(self.batches):
            raise SettingsError(
                f"--dataloader_drop_last True: {len(order)} samples do not fill a batch on every rank",
                code="no-batch",
            )
        seed = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
        loader: DataLoader[Batch] = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(leave_signals_to_parent, seed),
        )
        return self.accelerator.prepare(loader)

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: DataLoader[Batch]
    ) -> tuple[int | None, ...]:
        """Return transformers' numbers for a run, with the original's numbers of epochs and steps."""
        epochs, per_epoch, *sizes, batches, steps = super().set_initial_training_values(args, dataloader)
        if self.batches is not None:
            per_epoch = self.batches.full_steps
            steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
            epochs = math.ceil(steps / per_epoch if args.max_steps > 0 else args.num_train_epochs)
        return (epochs, per_epoch, *sizes, batches, steps)

    def _init_training_state(self, *settings: object, **more: object) -> tuple[int, int]:
        """Return the epoch to go on in, and how many of its batches are done."""
        found: tuple[int, int] = super()._init_training_state(*settings, **more)
        if self.batches is None:
            return found
        epoch = self.batches.epoch_of(self.state.global_step)
        done = self.state.global_step - self.batches.steps_before(epoch)
        return epoch, 0 if self.args.ignore_data_skip else done * self.args.gradient_accumulation_steps

    def _run_epoch(self, model: nn.Module, epoch: int, *rest: object, **settings: object) -> None:
        if self.batches is not None:
            # accelerate sets it too, but not through all wrappers that a resumed run adds.
            self.batches.set_epoch(epoch)
            settings["num_update_steps_per_epoch"] = self.batches.steps_in(epoch)
            settings["steps_in_epoch"] = self.batches.batches_in(epoch)
        super()._run_epoch(model, epoch, *rest, **settings)
