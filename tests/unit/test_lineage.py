"""What a round trains on."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.lineage.training import accepted_of, read_lineage
from llava.errors import DataError
from llava.scoring.metrics import write_scores
from support.engine_rounds import fill_round, record_of, run_of
from support.errors import raises_code


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["llava engine", *map(str, arguments)])
    main()


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders 1, 1-uniform, 2 and 10, each with six records."""
    metrics = write_scores(tmp_path / "m0", run_of())
    command(monkeypatch, "split", tmp_path / "rounds", metrics)
    for name in ("1", "1-uniform", "2", "10"):
        arm = ["arm=uniform"] if "uniform" in name else []
        fill_round(tmp_path / "rounds" / name, metrics, changes=[*arm, "give_up=false"])
    return tmp_path / "rounds"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    path = tmp_path / "base.json"
    path.write_text(json.dumps([{"id": f"b{number}", "conversations": said} for number in range(50)]))
    return path


def mixed(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def test_a_round_trains_on_all_rounds_of_its_arm_so_far(
    rounds: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        name: [path.parent.name for path in accepted_of(rounds / name)] for name in ("2", "10", "1-uniform")
    }
    assert names == {"2": ["1", "2"], "10": ["1", "2", "10"], "1-uniform": ["1-uniform"]}
    out = tmp_path / "mix.json"
    command(monkeypatch, "mix", "--round", rounds / "2", "--base", base, "--output", out, "--modes", "da,mc")
    rows = mixed(out)
    assert len(rows) == 50 + 2 * 12
    kept = read_lineage(rounds / "2")
    assert kept is not None
    assert [row["path"] for row in kept["accepted"]] == ["../1/accepted.jsonl", "../2/accepted.jsonl"]
    assert kept["output"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (kept["records"], kept["added"], kept["base"]["records"]) == (12, 24, 50)
    # A record keeps its id in another mix, and its options their shuffled order.
    command(
        monkeypatch, "mix", "--round", rounds / "2", "--incremental", "--replay", "0.5", "--base", base,
        "--output", out, "--modes", "mc",
    )  # fmt: skip
    later = mixed(out)
    assert len(later) == 6 + 3
    assert {json.dumps(row) for row in later} < {json.dumps(row) for row in rows}


def test_incremental_replays_a_base_sample_for_each_new_one(
    rounds: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mix.json"
    command(monkeypatch, "mix", "--round", rounds / "10", "--incremental", "--base", base, "--output", out)
    assert [row["id"][0] for row in mixed(out)] == ["b"] * 18 + ["e"] * 18


def test_records_of_another_round_and_two_folders_of_one_are_refused(rounds: Path) -> None:
    path = rounds / "1/accepted.jsonl"
    text = path.read_text()
    path.write_text(text + json.dumps(record_of("2-0000", 7)) + "\n")
    with raises_code("other-round", DataError) as error:
        accepted_of(rounds / "2")
    assert "1/accepted.jsonl:7" in str(error.value)
    path.unlink()
    with raises_code("missing-file", DataError):
        accepted_of(rounds / "2")
    path.write_text(text)
    (rounds / "1-again").mkdir()
    (rounds / "1-again/round.toml").write_text("")
    (rounds / "1-again/accepted.jsonl").write_text("")
    (rounds / "1-again/requests.jsonl").write_text("")
    with raises_code("two-folders", DataError):
        accepted_of(rounds / "2")
