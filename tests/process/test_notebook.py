"""The notebook, executed: it makes the training file the scripts read, wherever it is started from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from llava.samples import read_samples

NOTEBOOK = Path("playground/data/process_engine_data.ipynb")
MIX = "llava_v1_5_mix665k.json"
MIXED = "llava_v1_5_mix665k_dataengine.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with ten engine records, three base records and nine of the ten images."""
    records = [
        {
            "instruction": f"Where is thing {number}?",
            "answer": f"Thing {number} is on the left.",
            "short_answer": "left",
            "options": ["left", "right", "top", "bottom"],
            "choide_answer": "ABCD"[number % 4],
            "image": f"vg/VG_100K/{number}.jpg",
            "qtype": number % 9 + 1,
            "undocumented": {"ids": [1, 2]},
        }
        for number in range(10)
    ]
    base = [
        {"id": 17, "image": "gqa/images/17.jpg", "conversations": _turns("<image>\nWhich side?", "Left")},
        {"id": "a", "model": "", "conversations": _turns("Hé 日本 \u2028?", "2.50")},
        {"id": "a", "image": "vg/VG_100K/0.jpg", "conversations": _turns("Who?\n<image>", "Me")},
    ]
    (tmp_path / "data_engine").mkdir()
    (tmp_path / "data_engine/dataengine_llava.json").write_text(json.dumps(records))
    (tmp_path / MIX).write_text(json.dumps(base))
    (tmp_path / "vg/VG_100K").mkdir(parents=True)
    for number in range(1, 10):
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(tmp_path / f"vg/VG_100K/{number}.jpg")
    return tmp_path


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def execute(repo: Path, folder: Path, *, allow_errors: bool = False) -> nbformat.NotebookNode:
    notebook = nbformat.read(repo / NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=120, resources=where, allow_errors=allow_errors).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_notebook_is_kept_without_outputs(repo: Path) -> None:
    notebook = nbformat.read(repo / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 5
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize(("folder", "relative"), [(".", False), ("playground/data", True)])
def test_the_notebook_mixes_ten_records_behind_the_base(
    repo: Path, data: Path, folder: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_DATA", os.path.relpath(data, repo) if relative else str(data))
    notebook = execute(repo, repo / folder)
    rows = json.loads((data / MIXED).read_text(encoding="utf-8"))
    assert rows[:3] == json.loads((data / MIX).read_text())
    assert [row["id"] for row in rows[3:6]] == ["engine_da_0", "engine_mc_0", "engine_mcp_0"]
    assert len(list(read_samples(data / MIXED))) == len(rows) == 33
    text = printed(notebook)
    assert "records: 10 read, 10 used" in text
    assert "image_not_found_but_used: 1" in text
    assert "= 33 in" in text
    assert "expected optimiser steps: 1" in text
    assert "no image" in text
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("image/png" in out.get("data", {}) for out in shown) == 2


def test_nbconvert_runs_it_with_the_settings_of_the_environment(
    repo: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DATA": str(data), "MODES": "sa", "LIMIT": "4", "SEED": "1"}.items():
        monkeypatch.setenv(f"LLAVA_{name}", value)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(repo / NOTEBOOK)]
    subprocess.run([*command, "--output-dir", str(data)], check=True, capture_output=True)
    rows = json.loads((data / MIXED).read_text(encoding="utf-8"))
    assert [row["id"] for row in rows[3:]] == ["engine_sa_0", "engine_sa_1", "engine_sa_2", "engine_sa_3"]


@pytest.mark.parametrize(
    ("file", "source"), [("data_engine/dataengine_llava.json", "juliozhao"), (MIX, "liuhaotian")]
)
def test_a_missing_file_stops_the_notebook_with_one_line(
    repo: Path, data: Path, file: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_DATA", str(data))
    (data / file).unlink()
    with pytest.raises(CellExecutionError, match=rf"{file}: no such file.*{source}"):
        execute(repo, repo)
    assert not (data / "data_engine/dataengine_samples.json").exists()
    settings = execute(repo, repo, allow_errors=True).cells[1]
    assert len(settings.outputs[-1].traceback) == 1
