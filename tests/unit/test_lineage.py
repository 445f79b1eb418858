"""What a round trains on, and how each of its records is followed back."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.lineage.trace import trace_record
from llava.data_engine.lineage.training import accepted_of, read_lineage
from llava.data_engine.loop.round import file_sha256
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


def traced(rounds: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Mix round 2 and return the id of one of its training records."""
    out = rounds.parent / "mix.json"
    command(monkeypatch, "mix", "--round", rounds / "2", "--base", base, "--output", out, "--modes", "mc")
    return str(next(row["id"] for row in mixed(out) if row["id"].startswith("engine_mc_")))


def test_a_record_is_followed_back_to_the_scored_answers(
    rounds: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = traced(rounds, base, monkeypatch)
    capsys.readouterr()
    command(monkeypatch, "trace", name, "--rounds", rounds)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].strip() for line in lines] == [
        *("record", "training", "request", "prompt"), *["bad case"] * 3, "response", "answers",
    ]  # fmt: skip
    case = json.loads((rounds / "1/pool.json").read_text())["types"]["Scene Understanding"]["cases"][0]
    assert str(case["question_id"]) in lines[4]
    assert str(rounds.parent / "m0/metrics.json") in lines[-1]
    assert lines[0].startswith(f"record     {rounds / '1/accepted.jsonl'}:1 ")


@pytest.mark.parametrize(
    ("file", "link"),
    [
        ("1/accepted.jsonl", "training"),
        ("1/requests.jsonl", "request"),
        ("1/responses.jsonl", "response"),
        ("1/pool.json", "plan"),
        ("1/plan.json", "plan"),
        ("templates/versions.jsonl", "prompt"),
        ("../m0/metrics.json", "answers"),
    ],
)
def test_a_broken_link_is_named(
    rounds: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    link: str,
) -> None:
    name = traced(rounds, base, monkeypatch)
    path = rounds / file
    path.write_text("" if file.startswith("templates") else path.read_text() + "\n")
    capsys.readouterr()
    with raises_code("broken-link", DataError):
        command(monkeypatch, "trace", name, "--rounds", rounds)
    broken = [line for line in capsys.readouterr().out.splitlines() if "BROKEN" in line]
    assert [line.split()[0] for line in broken] == [link]
    assert path.name in broken[0] or "templates" in broken[0]


@pytest.mark.parametrize(
    ("name", "code"),
    [("engine_mc_17", "not-a-round-record"), ("engine_mc_0123456789abcdef", "unknown-record")],
)
def test_a_record_that_no_round_made_is_refused(rounds: Path, name: str, code: str) -> None:
    with raises_code(code, DataError):
        trace_record(rounds, name)


def test_a_trace_shows_a_models_text_without_its_control_characters(
    rounds: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = traced(rounds, base, monkeypatch)
    path = rounds / "1/responses.jsonl"
    path.write_text(path.read_text().replace("teacher", "\\u001b[2J\\u202eteacher"))
    report = json.loads((rounds / "1/clean.json").read_text())
    report["inputs"]["1/responses.jsonl"] = file_sha256(path)
    (rounds / "1/clean.json").write_text(json.dumps(report))
    capsys.readouterr()
    command(monkeypatch, "trace", name, "--rounds", rounds)
    out = capsys.readouterr().out
    assert "[2J" in out
    assert out.replace("\n", "").isprintable()
