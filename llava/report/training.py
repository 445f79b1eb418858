"""Draw the logs of training runs to a PNG: losses, learning rate, gradient norm, speed.

    llava report training RUN... [--out training.png]

A run is an output folder (of an unfinished run the newest checkpoint is read), a checkpoint-N, or a
trainer_state.json, also one of the original LLaVA. Several runs share each panel.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import DataError
from llava.files import read_json, require_distinct
from llava.report import curves
from llava.report.names import shortest_names
from llava.schema import JsonObject

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """One run's log. `history` is trainer_state.json's: one dictionary per entry, each with `step`."""

    name: str
    path: Path
    step: int
    max_steps: int
    history: Sequence[JsonObject]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and values logged under `key`; a value that is not a number becomes NaN."""
        points = [(entry["step"], entry[key]) for entry in self.history if key in entry]
        values = [float(value) if isinstance(value, int | float) else math.nan for _, value in points]
        return [step for step, _ in points], values

    def last(self, key: str) -> float | None:
        """Return the last value logged under `key`, None if there is none."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def keys(self) -> list[str]:
        """Return all logged keys in order of appearance."""
        return list(dict.fromkeys(key for entry in self.history for key in entry))


def read_logs(paths: Sequence[Path]) -> list[TrainingLog]:
    """Read the runs' logs and give each a short, distinct name.

    Raises:
        DataError: A run has no trainer_state.json, or nothing was logged.
    """
    files = [find_state_file(path) for path in paths]
    names = shortest_names([_run_folder(file).resolve().parts for file in files])
    return [_read_log(file, name) for file, name in zip(files, names, strict=True)]


def find_state_file(path: Path) -> Path:
    """Return the run's log file: `path` itself, that of the output folder, or of its newest checkpoint."""
    if path.is_file():
        return path
    if (path / STATE_FILE).is_file():
        return path / STATE_FILE
    found = [file for file in path.glob(f"checkpoint-*/{STATE_FILE}") if _step_of(file) is not None]
    if not found:
        raise DataError(
            f"{path}: no {STATE_FILE} here or in a checkpoint-N; name the --output_dir of a run that is "
            "finished or has saved a checkpoint",
            code="missing-log",
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
        raise DataError(
            f"{file}: no log_history, wanted a {STATE_FILE} of transformers' Trainer", code="damaged-log"
        )
    history = [entry for entry in history if isinstance(entry.get("step"), int)]
    last_step = max((entry["step"] for entry in history), default=0)
    log = TrainingLog(
        name, file, state.get("global_step", last_step), state.get("max_steps", last_step), history
    )
    if not curves.select_panels([log]):
        raise DataError(f"{file}: no step has been logged; see --logging_steps", code="empty-log")
    return log


def summarize_log(log: TrainingLog) -> str:
    """Return one line with the run's progress and its last values."""
    shown = {"loss": "loss", "eval_loss": "validation loss", "hours_left": "hours left"}
    values = {title: log.last(key) for key, title in shown.items()}
    text = "".join(f", {title} {value:.4g}" for title, value in values.items() if value is not None)
    return f"{log.name}: step {log.step} of {log.max_steps}{text}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava report training", description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder, checkpoint-N or file"
    )
    parser.add_argument("--out", type=Path, default=Path("training.png"), help="default: training.png")
    args = parser.parse_args()
    logs = read_logs(args.runs)
    require_distinct((args.out,), [log.path for log in logs])
    curves.draw_curves(logs, args.out)
    sys.stdout.writelines(f"{summarize_log(log)}\n" for log in logs)
    sys.stdout.write(f"{args.out}\n")
