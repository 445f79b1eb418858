"""The arm whose records are taken from data that is there already."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.loop.plan import make_plan
from llava.data_engine.loop.pool import make_pool
from llava.data_engine.loop.split import make_split
from llava.data_engine.requests.retrieve import retrieve_records
from llava.files import read_json, read_jsonl, write_json
from llava.scoring.metrics import write_scores
from support.engine_rounds import OPTIONS, record_of, run_of
from support.errors import raises_code

REQUESTS = 12
ARM = ("arm=retrieved", f"requests={REQUESTS}", "give_up=false")


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    make_split(tmp_path / "rounds", run_of())
    plan_round(tmp_path / "rounds/1-retrieved", *ARM)
    return tmp_path / "rounds"


def plan_round(folder: Path, *changes: str) -> None:
    make_pool(folder, write_scores(folder.parent.parent / "m0", run_of()), changes=changes)
    make_plan(folder)


def sample_of(number: int, *asked: tuple[str, str]) -> dict[str, Any]:
    turns = []
    for question, answer in asked:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return {"id": str(number), "image": f"gqa/{number}.jpg", "conversations": turns}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A base file: two questions with options about each of 40 images, and much that has none."""
    samples: list[Any] = [
        sample_of(
            number,
            (f"Where is the cat number {number}?{OPTIONS}", "B"),
            ("What is this?", "A cat."),
            (f"How many dogs are near {number}?{OPTIONS}", "two"),
            (f"Which lamp is number {number}?{OPTIONS}", "D"),
        )
        for number in range(100, 140)
    ]
    samples += [sample_of(99, ("Describe it.", "A street.")), {"id": "t", "conversations": []}]
    write_json(tmp_path / "base.json", samples)
    return tmp_path / "base.json"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(folder / "requests.jsonl")]


def test_each_request_takes_the_record_nearest_to_a_bad_case(rounds: Path, records: Path) -> None:
    folder = rounds / "1-retrieved"
    report = retrieve_records(folder, [records])
    rows = rows_of(folder)
    plan, pool = read_json(folder / "plan.json")["types"], read_json(folder / "pool.json")["types"]
    assert Counter(row["type"] for row in rows) == {name: row["requests"] for name, row in plan.items()}
    assert len({row["image"] for row in rows}) == len({row["id"] for row in rows}) == REQUESTS
    # All bad cases ask "Where is the ...?"
    assert all(row["question"].startswith("Where is the cat") for row in rows)
    assert 0 < report.similarity < 1
    # 40 times an answer in words, 41 questions without options.
    assert (report.usable, report.unusable["letter_not_a_letter"]) == (80, 40)
    assert report.unusable["options_missing"] == 41
    for row in rows:
        known = {case["question_id"] for case in pool[row["type"]]["cases"]}
        assert set(row["cases"]) <= known
    first = (folder / "requests.jsonl").read_bytes(), (folder / "responses.jsonl").read_bytes()
    retrieve_records(folder, [records])
    assert first == ((folder / "requests.jsonl").read_bytes(), (folder / "responses.jsonl").read_bytes())


def test_no_record_is_taken_twice_and_a_type_is_kept(rounds: Path, tmp_path: Path) -> None:
    stored = [record_of("", number, qtype=number % 9 + 1) for number in range(300)]
    write_json(tmp_path / "engine.json", [*stored, *stored])
    plan_round(rounds / "2-retrieved", *ARM)
    folders = [rounds / "1-retrieved", rounds / "2-retrieved"]
    reports = [retrieve_records(folder, [tmp_path / "engine.json"]) for folder in folders]
    assert reports[0].unusable == {"repeated": 300}
    assert reports[1].unusable["taken_before"] == 2 * REQUESTS
    rows = [row for folder in folders for row in rows_of(folder)]
    assert len({(row["image"], row["question"]) for row in rows}) == 2 * REQUESTS
    ids = {"Scene Understanding": 1, "Spatial Relation": 6, "Text Understanding": 9}
    assert all(stored[row["source"]["record"] % 300]["qtype"] == ids[row["type"]] for row in rows)


def test_a_retrieved_record_is_cleaned_mixed_and_traced(
    rounds: Path,
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["llava engine", *map(str, arguments)])
        main()

    folder, out = rounds / "1-retrieved", tmp_path / "mix.json"
    command("retrieve", folder, "--records", records)
    command("clean", folder, "--eval-root", tmp_path)
    accepted = read_json(folder / "clean.json")["accepted"]
    assert accepted == REQUESTS
    command("mix", "--round", folder, "--base", records, "--output", out, "--modes", "mc", "--replay", "0")
    added = [row for row in read_json(out) if row["id"].startswith("engine_mc_")]
    assert len(added) == accepted
    capsys.readouterr()
    command("trace", added[0]["id"], "--rounds", rounds)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].strip() for line in lines] == [
        "record", "training", "request", "source", "bad case", "response", "answers",
    ]  # fmt: skip
    assert str(records) in lines[3]
    command("status", rounds)
    assert "retrieved" in capsys.readouterr().out


def test_what_cannot_be_retrieved_is_refused(rounds: Path, records: Path, tmp_path: Path) -> None:
    folder = rounds / "1-retrieved"
    plan_round(rounds / "1", "give_up=false")
    with raises_code("other-arm"):
        retrieve_records(rounds / "1", [records])
    few = tmp_path / "few.json"
    few.write_text(json.dumps(read_json(records)[:3]))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for path in (few, empty):
        with raises_code("too-few-records"):
            retrieve_records(folder, [path])
    with raises_code("missing-file"):
        retrieve_records(folder, [records, tmp_path / "absent.json"])
    assert not (folder / "requests.jsonl").exists()
