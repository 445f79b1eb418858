"""The logs of training runs as curves in a PNG: losses, learning rate, gradient norm, speed.

    python -m llava.report training RUN... [--out training.png]

A run is an output folder, finished or not (its newest checkpoint tells how far it was then), a checkpoint-N,
or a trainer_state.json, ours or the original's. Several runs share each panel.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import DataError
from llava.files import read_json
from llava.report import curves
from llava.report.names import shortest

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """One run's log: `history` as trainer_state.json has it, a dictionary a line, each with its `step`."""

    name: str
    path: Path
    step: int
    max_steps: int
    history: Sequence[dict[str, Any]]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of what was logged under `key`; a value that is no number is NaN."""
        points = [(entry["step"], entry[key]) for entry in self.history if key in entry]
        values = [float(value) if isinstance(value, int | float) else math.nan for _, value in points]
        return [step for step, _ in points], values

    def last(self, key: str) -> float | None:
        """The last value under `key`; None if there is none."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def keys(self) -> list[str]:
        """All that was logged, in order of appearance."""
        return list(dict.fromkeys(key for entry in self.history for key in entry))


def read_logs(paths: Sequence[Path]) -> list[TrainingLog]:
    """The runs' logs, each with the shortest name that tells it apart.

    Raises:
        DataError: A run has no trainer_state.json, or it has no log.
    """
    files = [state_file(path) for path in paths]
    short = shortest([_run_folder(file).resolve().parts for file in files])
    return [_read_log(file, name) for file, name in zip(files, short, strict=True)]


def state_file(path: Path) -> Path:
    """Where a run's log is: the file itself, or the output folder's, or that of its newest checkpoint."""
    if path.is_file():
        return path
    if (path / STATE_FILE).is_file():
        return path / STATE_FILE
    found = [file for file in path.glob(f"checkpoint-*/{STATE_FILE}") if _step_of(file) is not None]
    if not found:
        raise DataError(
            f"{path}: there is no {STATE_FILE} here, nor in a checkpoint-N: name the --output_dir of a run "
            "that is finished or has saved a checkpoint"
        )
    return max(found, key=lambda file: _step_of(file) or 0)


def _step_of(file: Path) -> int | None:
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def _run_folder(file: Path) -> Path:
    folder = file.parent
    return folder.parent if folder.name == f"checkpoint-{_step_of(file)}" else folder


def _read_log(file: Path, name: str) -> TrainingLog:
    state = read_json(file)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise DataError(f"{file}: has no log_history, wanted a {STATE_FILE} of transformers' Trainer")
    history = [entry for entry in history if isinstance(entry.get("step"), int)]
    done = max((entry["step"] for entry in history), default=0)
    log = TrainingLog(name, file, state.get("global_step", done), state.get("max_steps", done), history)
    if not curves.panels([log]):
        raise DataError(f"{file}: no step has been logged; see --logging_steps")
    return log


def summarize_log(log: TrainingLog) -> str:
    """One line: how far the run is, and its last figures."""
    shown = {"loss": "loss", "eval_loss": "validation loss", "hours_left": "hours left"}
    figures = [(said, log.last(key)) for key, said in shown.items()]
    told = "".join(f", {said} {value:.4g}" for said, value in figures if value is not None)
    return f"{log.name}: step {log.step} of {log.max_steps}{told}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava.report training", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder, checkpoint-N or file"
    )
    parser.add_argument("--out", type=Path, default=Path("training.png"), help="default: training.png")
    args = parser.parse_args()
    logs = read_logs(args.runs)
    curves.draw(logs, args.out)
    sys.stdout.writelines(f"{summarize_log(log)}\n" for log in logs)
    sys.stdout.write(f"{args.out}\n")
