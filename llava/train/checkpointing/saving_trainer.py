"""Write a run's checkpoints and result, read them again, and end with the best checkpoint's weights."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import save_fsdp_optimizer
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput

from llava.model.loading.checkpoint import (
    ADAPTER_FILES,
    PROJECTOR_FILES,
    Kind,
    find_first_file,
    read_non_lora,
    strip_wrappers,
)
from llava.model.loading.weights import Tensors, find_weight_files, read_tensors
from llava.model.sharded import gather_copy
from llava.train.checkpointing.checkpoints import Checkpoints
from llava.train.checkpointing.resume import explain_load_errors, set_trained_weights
from llava.train.checkpointing.save import (
    copy_vocabulary,
    save_lora,
    save_projector,
    write_config,
    write_output,
)
from llava.train.checkpointing.verify import STATE_FILE, find_damage
from llava.train.distributed import gather_objects
from llava.train.planning.throughput import Meter

logger = logging.getLogger(__name__)


class SavingTrainer(Trainer):
    """transformers' Trainer, except that it saves what a run's kind needs, and all of it or nothing.

    With --load_best_model_at_end, each new best model gets a checkpoint, which stays until there is a better
    one, and whose weights the run ends with. `state.best_global_step` says which it is.
    `state.best_model_checkpoint` is not set: transformers would name the staging folder by it, and delete the
    newest checkpoint, from which a stopped run resumes.

    Attributes:
        kind: What is trained and saved: an adapter with its projector, the projector, or the full model.
        has_own_flags: Whether the arguments are this package's own.
        checkpoints: Writes and finds checkpoints.
        meter: Measures the run's speed; writing does not count.
    """

    kind: Kind
    has_own_flags: bool
    checkpoints: Checkpoints
    meter: Meter

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what this kind of run saves; a checkpoint's weights keep their training precision."""
        folder = Path(output_dir or str(self.args.output_dir))
        if _internal_call:
            with self.checkpoints.record_write_errors():
                self._write_weights(folder, None)
        else:
            self._write_weights(folder, self.args.compute_dtype if self.has_own_flags else None)

    def _write_weights(self, folder: Path, dtype: torch.dtype | None) -> None:
        is_writer = self.args.should_save
        model = self.accelerator.unwrap_model(self.model)
        if self.kind == "adapter":
            save_lora(model, folder, bias=self.args.lora_bias, dtype=dtype, is_writer=is_writer)
        elif self.kind == "projector":
            save_projector(model, folder, is_writer=is_writer)
        else:
            whole = self._gather_shards(model, dtype) if self.is_fsdp_enabled else None
            with write_output(folder, is_writer=is_writer) as staging:
                if whole is None:
                    super().save_model(str(staging), _internal_call=True)
                elif is_writer:
                    self._save(str(staging), whole)
                    model.config.dtype = dtype or model.dtype
                if is_writer:
                    write_config(staging, model.config)

    def _gather_shards(self, model: PreTrainedModel, dtype: torch.dtype | None) -> Tensors:
        """Return the weights that FSDP has split, on the rank that writes. Every rank must call this."""
        whole: Tensors = {}
        for name, parameter in model.named_parameters():
            tensor = gather_copy(parameter)
            if self.args.should_save:
                whole[name] = tensor.to(dtype or tensor.dtype)
        return whole

    def _save(self, output_dir: str | None = None, state_dict: Tensors | None = None) -> None:
        super()._save(output_dir, state_dict)
        copy_vocabulary(self.processing_class, Path(output_dir or str(self.args.output_dir)))

    # ---- checkpoints

    def _save_checkpoint(self, model: PreTrainedModel, trial: object, metrics: object = None) -> None:
        step, best = self.state.global_step, self._best_step
        with self.meter.paused():
            self.checkpoints.write(step, partial(self._write_checkpoint, model, trial), best=best)
        if self.checkpoints.has_failed and best == step:
            self.state.best_global_step, self.state.best_metric = self._best_before

    def _write_checkpoint(self, model: PreTrainedModel, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint is None:
            return
        self.state.best_model_checkpoint = None
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            with self.checkpoints.record_write_errors():
                self.state.save_to_json(str(folder / STATE_FILE))

    def _get_output_dir(self, trial: object) -> str:
        return str(self.checkpoints.staging or super()._get_output_dir(trial))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self.checkpoints.record_write_errors():
            if self.is_fsdp_enabled:  # transformers would write all weights again
                plugin = self.accelerator.state.fsdp_plugin
                save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
                if self.args.should_save:
                    torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
            else:
                super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        with self.checkpoints.record_write_errors():
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explain_load_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explain_load_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        with explain_load_errors(resume_from_checkpoint):
            self._load_weights(resume_from_checkpoint, model)

    def _load_weights(self, resume_from_checkpoint: str, model: PreTrainedModel) -> None:
        folder = Path(resume_from_checkpoint)
        model = self.model if model is None else model
        if self.kind == "projector":
            path = find_first_file(folder, PROJECTOR_FILES)
            stored = {} if path is None else read_tensors(path)
            set_trained_weights(model, {strip_wrappers(name): stored[name] for name in stored}, folder)
            return
        if self.is_fsdp_enabled:
            set_trained_weights(model, _stored_weights(folder), folder, with_adapter=True)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.kind == "adapter":
            set_trained_weights(model, read_non_lora(folder), folder)

    # ---- the best checkpoint

    @property
    def _best_step(self) -> int | None:
        """The step with the best validation so far; None if it is not asked for, or there is none yet."""
        step: int | None = self.state.best_global_step
        return step if self.args.load_best_model_at_end else None

    def _best_checkpoint(self) -> Path:
        return Path(str(self.args.output_dir)) / f"checkpoint-{self._best_step}"

    def _init_training_state(self, *settings: object, **more: object) -> tuple[int, int]:
        """Return transformers' state of a run, which names no best checkpoint that is gone."""
        found: tuple[int, int] = super()._init_training_state(*settings, **more)
        if self._best_step is not None and not self._best_checkpoint().is_dir():
            logger.warning("%s: is gone; the best model is sought from here on", self._best_checkpoint())
            self.state.best_global_step = self.state.best_metric = None
        return found

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        """Return whether this model is the best so far, and have its checkpoint written."""
        self._best_before = self.state.best_global_step, self.state.best_metric
        is_best: bool = super()._determine_best_metric(metrics, trial)
        # After the last step, the result has these weights.
        if is_best and self.args.load_best_model_at_end and self.state.global_step < self.state.max_steps:
            self.control.should_save = True
        return is_best

    def _finalize_training(self, *settings: object) -> TrainOutput:
        """End training; load the best weights unless this package's run was stopped early."""
        ended = super()._finalize_training(*settings)
        is_complete = self.state.global_step >= self.state.max_steps
        if self.args.load_best_model_at_end and (is_complete or not self.has_own_flags):
            self._load_best_model()
        return ended

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights. Every rank must call this."""
        if self._best_step is None:
            logger.warning("no validation loss was a number: the result has the last step's weights")
            return
        folder = self._best_checkpoint()
        loss = f"{self.args.metric_for_best_model} is the lowest ({self.state.best_metric:.4g})"
        if self._best_step == self.state.global_step:
            logger.info("the result has the last step's weights, whose %s", loss)
            return
        fault = find_damage(folder) if self.args.process_index == 0 else None
        fault, *_ = gather_objects(fault)
        if fault is not None and fault.code != "weights-only":
            logger.warning("%s: the result has the last step's weights instead of the best", fault)
            return
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(
                self.model_wrapped, str(folder), load_module_strict=self.kind != "adapter"
            )
        else:
            self._load_from_checkpoint(str(folder))
        logger.info("the result has the weights of %s, whose %s", folder, loss)


def _stored_weights(folder: Path) -> Tensors:
    """Return a checkpoint's weights: an adapter with what was trained beside it, or a whole model."""
    adapter = find_first_file(folder, ADAPTER_FILES)
    if adapter is None:
        files = find_weight_files(folder)
        return {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    stored = {strip_wrappers(name): tensor for name, tensor in read_tensors(adapter).items()}
    return {**stored, **read_non_lora(folder)}
