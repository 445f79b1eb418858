"""The internals of transformers, accelerate and DeepSpeed that training overrides or calls exist.

An upgrade that renames or removes one fails here first.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import save_fsdp_optimizer
from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from llava.train import llava_trainer, validation
from llava.train.checkpointing import saving_trainer
from llava.train.checkpointing.deepspeed_files import _stored_classes
from llava.train.step import epochs, row_trainer

# Methods of Trainer that we override or call, and the parameters that we rely on.
HOOKS: dict[str, list[str]] = {
    "_get_train_sampler": ["train_dataset"],
    "_get_grad_norm": ["model"],
    "_get_learning_rate": [],
    "_save": ["output_dir", "state_dict"],
    "_save_checkpoint": ["model", "trial"],
    "_get_output_dir": ["trial"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_save_rng_state": ["output_dir"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_rng_state": ["checkpoint"],
    "_prepare_inputs": ["inputs"],
    "_init_training_state": ["max_steps", "num_update_steps_per_epoch", "num_train_epochs"],
    "_run_epoch": ["model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch"],
    "_determine_best_metric": ["metrics", "trial"],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_load_best_model": [],
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn"],
}
# Public methods of which we rely on a private parameter or on the order of the parameters.
METHODS: dict[str, list[str]] = {
    "save_model": ["output_dir", "_internal_call"],
    "training_step": ["model", "inputs"],
    "compute_loss": ["model", "inputs"],
    "prediction_step": ["model", "inputs"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "create_optimizer": ["model"],
    "log": ["logs"],
    "get_eval_dataloader": ["eval_dataset"],
    "get_train_dataloader": [],
    "create_accelerator_and_postprocess": [],
    "set_initial_training_values": ["args", "dataloader"],
    "compute_loss_context_manager": [],
}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(("name", "wanted"), [*HOOKS.items(), *METHODS.items()])
def test_trainer_has_the_method_with_these_parameters(name: str, wanted: list[str]) -> None:
    assert hasattr(Trainer, name)
    found = parameters(getattr(Trainer, name))
    if name == "_get_dataloader":  # called with keywords
        assert set(wanted) <= set(found)
    else:
        assert found[: len(wanted)] == wanted


def test_every_private_method_of_trainer_in_use_is_listed() -> None:
    used = set()
    for module in (llava_trainer, saving_trainer, validation, epochs, row_trainer):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(Trainer, name)} == set(HOOKS)


def test_our_overrides_take_what_trainer_passes() -> None:
    for name in HOOKS:
        ours = inspect.signature(getattr(llava_trainer.LLaVATrainer, name))
        theirs = inspect.signature(getattr(Trainer, name))
        names = list(theirs.parameters)
        ours.bind(*names)  # raises TypeError if a parameter is new


def test_accelerate_can_postpone_the_synchronization_of_gradients() -> None:
    assert parameters(GradientState._set_sync_gradients) == ["sync_gradients"]
    assert isinstance(GradientState().sync_gradients, bool)


def test_accelerate_has_the_choice_of_fsdp_that_we_make_and_what_we_call() -> None:
    assert {"distributed_type", "fsdp_plugin"} <= set(AcceleratorState._known_attrs)
    wanted = ["fsdp_plugin", "accelerator", "optimizer", "model", "output_dir"]
    assert parameters(save_fsdp_optimizer)[:5] == wanted


def test_the_tensorboard_callback_has_the_attributes_that_we_reset() -> None:
    assert {"tb_writer", "_SummaryWriter"} <= set(TensorBoardCallback.__init__.__code__.co_names)


def test_deepspeed_has_the_methods_that_we_patch() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert parameters(TorchCheckpointEngine.save) == ["state_dict", "path"]
    assert parameters(TorchCheckpointEngine.load) == ["path", "map_location"]
    # transformers passes exclude_frozen_parameters only if the signature has it.
    found = parameters(DeepSpeedEngine.save_checkpoint)
    assert found[0] == "save_dir"
    assert "exclude_frozen_parameters" in found
    assert all(callable(stored) for stored in _stored_classes())


def test_deepspeed_has_the_launcher_and_the_kernel_that_we_name() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed import init_distributed, ops
    from deepspeed.launcher import runner

    assert parameters(runner.main)[:1] == ["args"]
    assert parameters(runner.fetch_hostfile)[:1] == ["hostfile_path"]
    assert {"dist_backend", "auto_mpi_discovery"} <= set(parameters(init_distributed))
    assert "deepspeed_shm_comm" in ops.__compatible_ops__
