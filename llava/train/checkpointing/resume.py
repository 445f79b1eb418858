"""Find out whether an output folder holds a finished run, one to resume, or nothing yet.

Only whole checkpoints count. A finished run is never overwritten by accident, and a run with other flags is
never resumed.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import PreTrainedModel

from llava.errors import CheckpointError, LlavaError, SettingsError, one_line
from llava.model.loading.checkpoint import strip_wrappers
from llava.model.loading.weights import Tensors
from llava.model.sharded import copy_into
from llava.schema import JsonObject
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.save import WRITE_ERRORS, write_output
from llava.train.checkpointing.settings import find_changes
from llava.train.checkpointing.verify import CHECKSUMS, STATE_FILE, find_damage, list_checkpoints, read_state
from llava.train.distributed import gather_objects

logger = logging.getLogger(__name__)

# The entry of STATE_FILE's callback states that holds the flags which decide what is learned.
SETTINGS = "llava_settings"
ELSEWHERE = "result-elsewhere"  # a link to a result that did not fit here


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts: nowhere (it is finished), at a checkpoint, or (neither set) at step 0."""

    is_finished: bool = False
    checkpoint: Path | None = None


def find_start(training_args: TrainingArguments) -> Start:
    """Decide where `--resume_from_checkpoint` starts a run. Every rank must call this.

    auto: nothing to do for a finished run of the same length; else the whole checkpoint with the most steps;
    else step 0. never: step 0. A folder: that checkpoint.

    Raises:
        SettingsError: The folder holds a run of another length or with other flags, or ranks see different
            files.
        CheckpointError: The named checkpoint, or every one that there is, cannot be resumed.
    """
    output = Path(str(training_args.output_dir))
    _require_shared(output, training_args)
    decided: Start | LlavaError | None = None
    if training_args.process_index == 0:  # reads all files of a checkpoint
        try:
            decided = _decide(output, training_args)
        except LlavaError as error:
            decided = error
        except OSError as error:
            where = error.filename or output
            decided = CheckpointError(f"{where}: {error.strerror}", code="unreadable-checkpoint")
    decided, *_ = gather_objects(decided)
    if isinstance(decided, Start):
        return decided
    assert decided is not None
    raise decided


def _require_shared(output: Path, training_args: TrainingArguments) -> None:
    """Refuse a folder in which the ranks see different checkpoints."""
    seen = [path.name for path in list_checkpoints(output)]
    for rank, other in enumerate(gather_objects(seen)):
        if other != seen:
            raise SettingsError(
                f"{output}: rank {training_args.process_index} sees {', '.join(seen) or 'no checkpoint'}, "
                f"rank {rank} {', '.join(other) or 'none'}: --output_dir must be on a disk that all machines "
                "share",
                code="not-shared",
            )


def _decide(output: Path, training_args: TrainingArguments) -> Start:
    asked = training_args.resume_from_checkpoint or "auto"
    if asked == "never":
        return Start()
    if asked != "auto":
        checkpoint = Path(asked)
        if (fault := find_damage(checkpoint)) is not None:
            raise CheckpointError(
                f"{fault}: give another checkpoint-N to --resume_from_checkpoint, or auto", code=fault.code
            )
        _note_resumed(checkpoint, training_args)
        return Start(checkpoint=checkpoint)
    _bring_back(output)
    finished = read_state(output / STATE_FILE)
    if finished is not None and finished["global_step"] >= finished["max_steps"]:
        _require_same_length(output, finished, training_args)
        _require_same_settings(output, "a finished run", finished, training_args)
        return Start(is_finished=True)
    newest = _find_newest_whole(output)
    if newest is None:
        return Start()
    _require_same_settings(newest, "an unfinished run", read_state(newest / STATE_FILE), training_args)
    _note_resumed(newest, training_args)
    return Start(checkpoint=newest)


def _bring_back(output: Path) -> None:
    """Move a result here that was written elsewhere for want of room."""
    link = output / ELSEWHERE
    if not link.is_symlink():
        return
    spare = link.resolve()
    if read_state(spare / STATE_FILE) is None:
        logger.warning("%s: the result that was written there is gone", spare)
    else:
        with write_output(output, is_writer=True) as staging:
            shutil.copytree(spare, staging, dirs_exist_ok=True, copy_function=shutil.copyfile)
        shutil.rmtree(spare, ignore_errors=True)
        logger.info("%s: the result was moved here from %s", output, spare)
    link.unlink()


def _find_newest_whole(output: Path) -> Path | None:
    """Return the whole checkpoint with the most steps, None if there are no checkpoints.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    faults: list[CheckpointError] = []
    for checkpoint in reversed(list_checkpoints(output)):
        fault = find_damage(checkpoint)
        if fault is None:
            if faults:
                logger.warning("%s; the newest whole one is %s", faults[0], checkpoint)
            return checkpoint
        faults.append(fault)
    if faults:
        others = f" (nor {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{faults[0]}{others}: --resume_from_checkpoint never starts over, and keeps what is there",
            code=faults[0].code,
        )
    return None


def _note_resumed(checkpoint: Path, training_args: TrainingArguments) -> None:
    """Refuse another layout of processes; log what makes the resumed run less certain or less exact."""
    _require_same_layout(checkpoint, training_args)
    if not (checkpoint / CHECKSUMS).is_file():
        logger.warning(
            "%s: has no %s, so it was only checked that its files are there and can be opened",
            *(checkpoint, CHECKSUMS),
        )
    writers = max(len(list(checkpoint.glob("rng_state_*.pth"))), 1)
    if writers != training_args.world_size:
        logger.warning(
            "%s: was written by %d processes, now there are %d: dropout draws other random numbers",
            *(checkpoint, writers, training_args.world_size),
        )


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
    changed = find_changes(then, now)
    if changed:
        changes = "; ".join(f"{name} {then[name]}, now {now[name]}" for name in changed)
        raise SettingsError(
            f"{folder}: holds {what} with other flags ({changes}): give another --output_dir, or "
            "--resume_from_checkpoint never to start over, or a checkpoint-N to resume it all the same",
            code="other-flags",
        )


def _require_same_layout(checkpoint: Path, training_args: TrainingArguments) -> None:
    """Refuse a checkpoint of another ZeRO stage, of FSDP, or of another number of DeepSpeed's ranks."""
    shards = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    is_sharded = any(checkpoint.glob("global_step*/*zero_pp_rank_*_model_states.pt"))
    alone = "FSDP" if (checkpoint / "optimizer.bin").is_file() else "neither DeepSpeed nor FSDP"
    then = "ZeRO-3" if is_sharded else "DeepSpeed below ZeRO-3" if shards else alone
    now = "FSDP" if training_args.fsdp else "neither DeepSpeed nor FSDP"
    if (plugin := training_args.deepspeed_plugin) is not None:
        now = "ZeRO-3" if plugin.zero_stage == 3 else "DeepSpeed below ZeRO-3"
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


def set_trained_weights(
    model: PreTrainedModel, tensors: Tensors, folder: Path, *, with_adapter: bool = False
) -> None:
    """Load the trained weights beside an adapter's, or those too. Under FSDP every rank must call this.

    Raises:
        CheckpointError: One of them is missing.
    """
    trained = {
        strip_wrappers(name).replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (with_adapter or "lora_" not in name)
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
            copy_into(parameter, tensors[name])
