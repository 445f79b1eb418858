"""Whether an output folder holds a finished run, an unfinished one to go on with, or nothing yet.

A checkpoint counts only if it is complete; a finished run is never trained over by accident; neither is taken
for that of a run with other flags.
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
from typing import Any

from llava.errors import CheckpointError, SettingsError
from llava.train.arguments import TrainingArguments
from llava.train.checkpointing.save import WRITE_ERRORS
from llava.train.distributed import gather_objects

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # written last, in a checkpoint and at the end of a run
SETTINGS = (
    "llava_settings"  # where STATE_FILE holds what decided what was learned, among the callbacks' states
)
TRAINED_FILES = ("optimizer.pt", "optimizer.bin", "latest")  # `latest` is DeepSpeed's


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: nothing to do, a checkpoint to go on from, or (both unset) from the start."""

    is_finished: bool = False
    checkpoint: Path | None = None


def find_start(training_args: TrainingArguments) -> Start:
    """What `--resume_from_checkpoint` means for this output folder.

    auto: a run finished with the same length is left alone; else from the newest complete checkpoint; else
    from the start. never: from the start. A folder: from there.

    Every process must call this.

    Raises:
        SettingsError: The folder holds a run of another length or with other flags, or processes see others.
        CheckpointError: The checkpoint asked for is not complete.
    """
    start = _found(training_args)
    for rank, other in enumerate(gather_objects(start)):
        if other != start:
            raise SettingsError(
                f"{training_args.output_dir}: process {training_args.process_index} sees "
                f"{start.checkpoint or 'no checkpoint'} there, process {rank} {other.checkpoint or 'none'}: "
                "--output_dir must be on a disk that all machines share"
            )
    return start


def _found(training_args: TrainingArguments) -> Start:
    asked = training_args.resume_from_checkpoint or "auto"
    output = Path(str(training_args.output_dir))
    if asked == "never":
        return Start()
    if asked != "auto":
        checkpoint = Path(asked)
        if not is_complete(checkpoint):
            raise CheckpointError(f"{checkpoint}: not a complete checkpoint (no {STATE_FILE} or optimizer)")
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
    _require_same_settings(newest, "a part of a run", _read_state(newest / STATE_FILE), training_args)
    _require_same_layout(newest, training_args)
    return Start(checkpoint=newest)


def is_complete(checkpoint: Path) -> bool:
    """Whether everything of a checkpoint was written: its state file comes last."""
    has_optimizer = any((checkpoint / name).is_file() for name in TRAINED_FILES)
    return has_optimizer and _read_state(checkpoint / STATE_FILE) is not None


def _require_same_length(output: Path, state: dict[str, Any], training_args: TrainingArguments) -> None:
    if training_args.max_steps > 0:
        same, asked = state["max_steps"] == training_args.max_steps, f"{training_args.max_steps} steps"
    else:
        epochs = training_args.num_train_epochs
        same, asked = state.get("num_train_epochs") == math.ceil(epochs), f"{epochs:g} epochs"
    if not same:
        raise SettingsError(
            f"{output}: holds a finished run of {state['max_steps']} steps "
            f"({state.get('num_train_epochs')} epochs), {asked} are asked for: give another --output_dir, or "
            "--resume_from_checkpoint never to train anew, or a checkpoint-N to go on from"
        )


def _require_same_settings(
    folder: Path, what: str, state: dict[str, Any] | None, training_args: TrainingArguments
) -> None:
    """Refuse what was learned otherwise than is asked for now; what does not tell its flags passes."""
    states = (state or {}).get("stateful_callbacks") or {}
    then, now = states.get(SETTINGS, {}).get("args", {}), training_args.learned_from
    other = [name for name in now if name in then and then[name] != now[name]]
    if other:
        said = "; ".join(f"{name} {then[name]}, now {now[name]}" for name in other)
        raise SettingsError(
            f"{folder}: holds {what} with other flags ({said}): give another --output_dir, or "
            "--resume_from_checkpoint never to train anew, or a checkpoint-N to go on from all the same"
        )


def _require_same_layout(checkpoint: Path, training_args: TrainingArguments) -> None:
    """Refuse what was started otherwise: DeepSpeed's kinds have files of their own, one for each process."""
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    is_sharded = any(checkpoint.glob("global_step*/*zero_pp_rank_*_model_states.pt"))
    then = "ZeRO-3" if is_sharded else "DeepSpeed below ZeRO-3" if parts else "no DeepSpeed"
    plugin = training_args.deepspeed_plugin
    now = (
        "no DeepSpeed" if plugin is None else "ZeRO-3" if plugin.zero_stage == 3 else "DeepSpeed below ZeRO-3"
    )
    if then != now:
        raise CheckpointError(f"{checkpoint}: was written with {then}, and cannot be read with {now}")
    if parts and parts != training_args.world_size:
        raise CheckpointError(
            f"{checkpoint}: was written by {parts} DeepSpeed processes, and cannot be read by "
            f"{training_args.world_size}; start as many again"
        )


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and {"global_step", "max_steps"} <= set(state)
    return state if known else None


@contextmanager
def explain_load_errors(checkpoint: str | None) -> Iterator[None]:
    """Libraries' errors about a checkpoint on one line, with its name and what to do."""
    try:
        yield
    except (*WRITE_ERRORS, UnpicklingError, EOFError, ValueError, KeyError) as error:
        gist = (
            "holds more than tensors" if isinstance(error, UnpicklingError) else " ".join(str(error).split())
        )
        raise CheckpointError(
            f"{checkpoint}: cannot be gone on from: it is damaged, or of a run with other flags "
            f"({gist[:200]}); name an earlier checkpoint-N by --resume_from_checkpoint, or never"
        ) from error
