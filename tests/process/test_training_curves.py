"""Test the curves of training runs: reading logs, drawing them, and errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.errors import DataError
from llava.report import curves, training
from support.errors import raises_code
from support.warm_python import warm_python


def write_run(folder: Path, *, steps: int, of: int, slope: float = 1.0) -> Path:
    """Write a run's log: one entry per step, a validation every ten steps."""
    history: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 1.0 + slope / step
        history.append({"loss": loss, "learning_rate": 1e-4, "mfu": 0.4, "epoch": step / of, "step": step})
        if step % 10 == 0:
            losses = {"eval_loss": loss, "eval_loss/letter": loss / 2, "eval_loss/Text Understanding": loss}
            history.append({**losses, "step": step})
    folder.mkdir(parents=True)
    state = {"global_step": steps, "max_steps": of, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def report(*args: object) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), "-m", "llava.report", "training", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def colors(image: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(image).convert("RGB"))
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_finished_and_unfinished_runs_are_drawn_together(tmp_path: Path) -> None:
    write_run(tmp_path / "base", steps=40, of=40)
    for step in (5, 20):
        write_run(tmp_path / "tuned" / f"checkpoint-{step}", steps=step, of=40, slope=0.5)
    result = report(tmp_path / "base", tmp_path / "tuned", "--out", tmp_path / "both.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "base: step 40 of 40, loss 1.025, validation loss 1.025",
        "tuned: step 20 of 40, loss 1.025, validation loss 1.025",
        str(tmp_path / "both.png"),
    ]
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert {blue, orange} < colors(tmp_path / "both.png")
    report(tmp_path / "base", "--out", tmp_path / "one.png")
    assert orange not in colors(tmp_path / "one.png")


def test_every_logged_quantity_has_a_panel(tmp_path: Path) -> None:
    logs = training.read_logs([write_run(tmp_path / "run", steps=10, of=10)])
    titles = [panel.title for panel in curves.select_panels(logs)]
    assert titles[:3] == ["Training loss", "Validation loss", "Learning rate"]
    assert titles[3:] == [
        "Model FLOPs utilisation",
        "Validation: Text Understanding",
        "Validation: letter",
    ]
    assert logs[0].series("mfu") == (list(range(1, 11)), [0.4] * 10)


def test_smoothing_starts_unbiased_and_skips_nan() -> None:
    assert curves.smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    with_gap = curves.smooth([4.0, math.nan, 4.0])
    assert with_gap == pytest.approx([4.0, 4.0, 4.0])
    assert math.isnan(curves.smooth([math.nan])[0])
    halved = curves.smooth([0.0] * 100 + [1.0, 1.0])
    assert halved[-1] == pytest.approx(0.5, abs=0.05)


def test_a_log_of_the_original_llava_is_drawn(tmp_path: Path) -> None:
    history = [
        {"loss": float("nan"), "learning_rate": 1e-4, "epoch": 0.1, "step": 1},
        {"total_flos": 1, "step": 1},
    ]
    file = tmp_path / "trainer_state.json"
    file.write_text(json.dumps({"global_step": 1, "max_steps": 9, "log_history": history}))
    curves.draw_curves(training.read_logs([file]), tmp_path / "old.png")
    assert Image.open(tmp_path / "old.png").size[0] > 1000


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (None, "missing-log"),
        ("[]", "damaged-log"),
        ('{"log_history": [{"train_runtime": 1.0, "step": 3}]}', "empty-log"),
    ],
)
def test_a_run_without_a_log_is_named(tmp_path: Path, state: str | None, code: str) -> None:
    if state is not None:
        (tmp_path / "trainer_state.json").write_text(state)
    with raises_code(code, DataError) as error:
        training.read_logs([tmp_path])
    assert str(tmp_path) in str(error.value)


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3, of=3)
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['report', 'training', {str(run)!r}]\n"
        "from llava import command; from llava.report.__main__ import main; command.run(main)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert "llava[plot]" in result.stderr
    assert not list(tmp_path.glob("*.png"))
