"""Find out whether an output folder holds a finished run, one to resume, or nothing yet.

Only complete checkpoints count. A finished run is never overwritten by accident, and a run with other flags
is never resumed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import PreTrainedModel

from llava.errors import CheckpointError, SettingsError, one_line
from llava.model.loading.checkpoint import strip_wrappers
from llava.model.loading.weights import Tensors
from llava.schema import JsonObject
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.save import WRITE_ERRORS
from llava.train.distributed import gather_objects

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # written last, in a checkpoint and at the end of a run
# The entry of STATE_FILE's callback states that holds the flags which decide what is learned.
SETTINGS = "llava_settings"
TRAINED_FILES = ("optimizer.pt", "optimizer.bin", "latest")  # `latest` is DeepSpeed's


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts: nowhere (it is finished), at a checkpoint, or (neither set) at step 0."""

    is_finished: bool = False
    checkpoint: Path | None = None


def find_start(training_args: TrainingArguments) -> Start:
    """Decide where `--resume_from_checkpoint` starts a run. Every rank must call this.

    auto: nothing to do for a finished run of the same length; else the newest complete checkpoint; else step
    0. never: step 0. A folder: that checkpoint.

    Raises:
        SettingsError: The folder holds a run of another length or with other flags, or ranks see different
            files.
        CheckpointError: The named checkpoint is not complete.
    """
    start = _find_local_start(training_args)
    for rank, other in enumerate(gather_objects(start)):
        if other != start:
            raise SettingsError(
                f"{training_args.output_dir}: rank {training_args.process_index} sees "
                f"{start.checkpoint or 'no checkpoint'} there, rank {rank} {other.checkpoint or 'none'}: "
                "--output_dir must be on a disk that all machines share",
                code="not-shared",
            )
    return start


def _find_local_start(training_args: TrainingArguments) -> Start:
    asked = training_args.resume_from_checkpoint or "auto"
    output = Path(str(training_args.output_dir))
    if asked == "never":
        return Start()
    if asked != "auto":
        checkpoint = Path(asked)
        if not is_complete(checkpoint):
            raise CheckpointError(
                f"{checkpoint}: not a complete checkpoint (no {STATE_FILE} or optimizer)",
                code="incomplete-checkpoint",
            )
        _require_same_layout(checkpoint, training_args)
        return Start(checkpoint=checkpoint)
    finished = _read_state(output / STATE_FILE)
    if finished is not None and finished["global_step"] >= finished["max_steps"]:
        _require_same_length(output, finished, training_args)
        _require_same_settings(output, "a finished run", finished, training_args)
        return Start(is_finished=True)
    found = [path for path in output.glob("checkpoint-*") if is_complete(path)]
    if not found:
        return Start()
    newest = max(found, key=lambda path: (path / STATE_FILE).stat().st_mtime)
    _require_same_settings(newest, "an unfinished run", _read_state(newest / STATE_FILE), training_args)
    _require_same_layout(newest, training_args)
    return Start(checkpoint=newest)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to the end: its state file comes last."""
    has_optimizer = any((checkpoint / name).is_file() for name in TRAINED_FILES)
    return has_optimizer and _read_state(checkpoint / STATE_FILE) is not None


def _require_same_length(output: Path, state: JsonObject, training_args: TrainingArguments) -> None:
    if training_args.max_steps > 0:
        is_same, wanted = state["max_steps"] == training_args.max_steps, f"{training_args.max_steps} steps"
    else:
        epochs = training_args.num_train_epochs
        is_same, wanted = state.get("num_train_epochs") == math.ceil(epochs), f"{epochs:g} epochs"
    if not is_same:
        raise SettingsError(
            f"{output}: holds a finished run of {state['max_steps']} steps "
            f"({state.get('num_train_epochs')} epochs), wanted {wanted}: give another --output_dir, or "
            "--resume_from_checkpoint never to start over, or a checkpoint-N to resume",
            code="other-length",
        )


def _require_same_settings(
    folder: Path, what: str, state: JsonObject | None, training_args: TrainingArguments
) -> None:
    """Refuse a run that was trained with other flags. One that does not record its flags passes."""
    states = (state or {}).get("stateful_callbacks") or {}
    then, now = states.get(SETTINGS, {}).get("args", {}), training_args.learned_from
    changed = [name for name in now if name in then and then[name] != now[name]]
    if changed:
        changes = "; ".join(f"{name} {then[name]}, now {now[name]}" for name in changed)
        raise SettingsError(
            f"{folder}: holds {what} with other flags ({changes}): give another --output_dir, or "
            "--resume_from_checkpoint never to start over, or a checkpoint-N to resume it all the same",
            code="other-flags",
        )


def _require_same_layout(checkpoint: Path, training_args: TrainingArguments) -> None:
    """Refuse a checkpoint of another ZeRO stage or number of ranks: DeepSpeed writes a file for each rank."""
    shards = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    is_sharded = any(checkpoint.glob("global_step*/*zero_pp_rank_*_model_states.pt"))
    then = "ZeRO-3" if is_sharded else "DeepSpeed below ZeRO-3" if shards else "no DeepSpeed"
    plugin = training_args.deepspeed_plugin
    now = (
        "no DeepSpeed" if plugin is None else "ZeRO-3" if plugin.zero_stage == 3 else "DeepSpeed below ZeRO-3"
    )
    if then != now:
        raise CheckpointError(
            f"{checkpoint}: was written with {then}, and cannot be read with {now}", code="other-layout"
        )
    if shards and shards != training_args.world_size:
        raise CheckpointError(
            f"{checkpoint}: was written by {shards} DeepSpeed processes, and cannot be read by "
            f"{training_args.world_size}; start {shards} processes",
            code="other-layout",
        )


def _read_state(path: Path) -> JsonObject | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and {"global_step", "max_steps"} <= set(state)
    return state if known else None


@contextmanager
def explain_load_errors(checkpoint: str | None) -> Iterator[None]:
    """Turn load errors into a CheckpointError that names the checkpoint and says what to do."""
    try:
        yield
    except (*WRITE_ERRORS, UnpicklingError, EOFError, ValueError, KeyError) as error:
        unpickled = isinstance(error, UnpicklingError)
        reason = "holds more than tensors" if unpickled else one_line(error, 200)
        raise CheckpointError(
            f"{checkpoint}: cannot be resumed: it is damaged, or of a run with other flags "
            f"({reason}); give an earlier checkpoint-N to --resume_from_checkpoint, or never",
            code="damaged-checkpoint",
        ) from error


def set_trained_weights(model: PreTrainedModel, tensors: Tensors, folder: Path) -> None:
    """Load the trained weights beside an adapter's.

    Raises:
        CheckpointError: One of them is missing.
    """
    trained = {
        strip_wrappers(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    missing = set(trained) - set(tensors)
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {len(missing)} of the {len(trained)} weights trained beside an adapter, as the "
            "original's checkpoints do; --resume_from_checkpoint never starts a new run",
            code="missing-weights",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
