"""Whether an output folder holds a finished run, an unfinished one to go on with, or nothing yet.

A checkpoint counts only if it is complete; a finished run is never trained over by accident; neither is taken
for that of a run with other flags.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import CheckpointError, SettingsError
from llava.train.arguments import TrainingArguments

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

    Raises:
        SettingsError: The folder holds a run of another length or with other flags.
        CheckpointError: The checkpoint asked for is not complete.
    """
    asked = training_args.resume_from_checkpoint or "auto"
    output = Path(str(training_args.output_dir))
    if asked == "never":
        return Start()
    if asked != "auto":
        checkpoint = Path(asked)
        if not is_complete(checkpoint):
            raise CheckpointError(f"{checkpoint}: not a complete checkpoint (no {STATE_FILE} or optimizer)")
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


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and {"global_step", "max_steps"} <= set(state)
    return state if known else None
