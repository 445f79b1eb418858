"""Reports over rounds: numbers, stop rule, frozen part, and pages that show hostile text as text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.loop.score import score_base, score_round
from llava.data_engine.loop.split import make_split, read_parts
from llava.data_engine.results.report import report_rounds
from llava.errors import DataError, SettingsError
from llava.files import write_jsonl
from llava.schema import Scores
from llava.scoring.markup import escape_markdown
from llava.scoring.metrics import write_scores
from support.engine_rounds import TYPES, fill_round, run_of
from support.errors import raises_code

HOSTILE = "<script>alert(1)</script> | `x` **b** [l](javascript:a) <img src=x onerror=a>\n\n# H\x1b[31m\u202e"


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    """Two rounds of two arms: guided gains much in the first round and nothing in the second."""
    base = write_scores(tmp_path / "m0", run_of())
    make_split(tmp_path / "rounds", run_of())
    rounds = tmp_path / "rounds"
    better = run_of({"Text Understanding": 0.95, "Spatial Relation": 0.9}, model="g1")
    fill_round(rounds / "1", base, rejected={"leaked": 1, "schema": 2})
    fill_round(rounds / "1-uniform", base, requests=5, cost=None, changes=["arm=uniform"])
    score(rounds / "1", better)
    score(rounds / "1-uniform", run_of({"Text Understanding": 0.5}, model="u1"))
    fill_round(rounds / "2", tmp_path / "g1/metrics.json", changes=["give_up=false"])
    fill_round(rounds / "2-uniform", tmp_path / "u1/metrics.json", changes=["arm=uniform"])
    return rounds


def score(folder: Path, scores: Scores) -> None:
    score_round(folder, write_scores(folder.parent.parent / scores.model_id, scores))


def summary_of(rounds: Path) -> dict[str, Any]:
    report_rounds(rounds)
    value: dict[str, Any] = json.loads((rounds / "summary.json").read_text())
    return value


def held_out(rounds: Path, scores: Scores) -> float:
    return 100 * fmean(verdict.score for verdict in read_parts(rounds).select(scores, "holdout"))


def test_the_summary_holds_what_the_hold_out_says(rounds: Path) -> None:
    score(rounds / "2", run_of({"Text Understanding": 0.97, "Spatial Relation": 0.9}, model="g2"))
    summary = summary_of(rounds)
    assert [entry["round"] for entry in summary["rounds"]] == [1, 2]
    one, two = (entry["arms"]["guided"] for entry in summary["rounds"])
    uniform = summary["rounds"][0]["arms"]["uniform"]
    right = {"Text Understanding": 0.95, "Spatial Relation": 0.9}
    assert one["n"] == len(read_parts(rounds).parts["holdout"]) == 96
    assert one["score"] == pytest.approx(held_out(rounds, run_of(right)))
    gain = one["vs_base"]
    assert gain["value"] == pytest.approx(one["score"] - held_out(rounds, run_of()))
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert one["vs_uniform"]["value"] == pytest.approx(one["score"] - uniform["score"])
    assert (one["cost"], two["cost"], two["spent"]) == (3.0, 3.0, 6.0)
    assert one["per_point"]["value"] == pytest.approx(3 / gain["value"])
    assert one["per_point"]["low"] == pytest.approx(3 / gain["high"])
    assert (uniform["cost"], uniform["per_point"]) == (None, None)
    assert two["vs_previous"]["low"] <= 0
    assert set(one["types"]) == set(TYPES)
    assert one["types"]["Scene Understanding"]["value"] == 0
    assert one["types"]["Scene Understanding"]["p"] == 1
    assert list(one["rejected"].items()) == [("schema", 2), ("leaked", 1)]
    assert summary["rounds"][0]["sizes"]
    assert summary["rounds"][1]["sizes"] is None
    stop = summary["stop"]
    assert [test["passed"] for test in stop["tests"]] == [True, False]
    assert (stop["verdict"], stop["planned"], stop["threshold"]) == ("stop", 3, pytest.approx(0.05 / 3))


def test_only_clear_gains_are_marked(rounds: Path) -> None:
    report_rounds(rounds)
    html = (rounds / "1/report.html").read_text()
    assert '<td class="up">+75.00' in html
    assert "<td>+0.00" in html
    assert (
        "| Scene Understanding | 48 | 87.50 | 87.50 | +0.00 [-6.81, 6.81] | 1.000 |"
        in (rounds / "1/report.md").read_text()
    )


def test_a_round_that_is_not_scored_waits(rounds: Path) -> None:
    summary = summary_of(rounds)
    assert summary["stop"]["verdict"] == "wait"
    assert summary["rounds"][1]["arms"]["guided"]["vs_base"] is None
    for name in ("report.md", "2/report.html"):
        assert "not scored yet" in (rounds / name).read_text()


def test_scores_of_other_questions_models_and_rounds_are_refused(rounds: Path, tmp_path: Path) -> None:
    run = run_of(model="x")
    with raises_code("other-questions", DataError):
        score(rounds / "2", Scores(run.benchmark, run.headline, run.scores, run.verdicts[1:], model_id="x"))
    with raises_code("other-questions", DataError):
        score(rounds / "2", Scores("mme", run.headline, run.scores, run.verdicts, model_id="x"))
    for name in ("g1", "u1"):
        with raises_code("other-model", DataError):
            score_round(rounds / "2", tmp_path / name)
    assert not (rounds / "2/after.json").exists()
    (rounds / "2/after.json").write_bytes((rounds / "1/after.json").read_bytes())
    with raises_code("other-round", DataError):
        report_rounds(rounds)


def test_the_base_may_be_named_again_when_its_scores_have_moved(rounds: Path, tmp_path: Path) -> None:
    before = summary_of(rounds)
    (tmp_path / "m0").rename(tmp_path / "moved")
    with raises_code("missing-file", DataError):
        report_rounds(rounds)
    score_base(rounds, tmp_path / "moved")
    assert summary_of(rounds) == before


def test_one_arm_free_of_charge_and_unchanged_types(tmp_path: Path) -> None:
    base, rounds = write_scores(tmp_path / "m0", run_of()), tmp_path / "rounds"
    make_split(rounds, run_of())
    fill_round(rounds / "1", base, cost=0.0, changes=["rounds=1"])
    score(rounds / "1", run_of(model="same"))
    row = summary_of(rounds)["rounds"][0]["arms"]["guided"]
    assert row["vs_base"]["value"] == 0
    assert (row["cost"], row["spent"], row["per_point"]) == (0.0, 0.0, None)
    assert "undefined" in (rounds / "report.md").read_text()
    assert "Guided against" not in (rounds / "report.html").read_text()
    score(rounds / "1", run_of(dict.fromkeys(TYPES, 1.0), model="all"))
    assert summary_of(rounds)["rounds"][0]["arms"]["guided"]["per_point"]["value"] == 0


def test_rounds_are_in_the_order_of_their_numbers_and_those_beyond_the_plan_prove_nothing(
    rounds: Path, tmp_path: Path
) -> None:
    score(rounds / "2", run_of({"Text Understanding": 0.97, "Spatial Relation": 0.9}, model="g2"))
    fill_round(rounds / "10", tmp_path / "g2/metrics.json", changes=["give_up=false"])
    score(rounds / "10", run_of(dict.fromkeys(TYPES, 1.0), model="g10"))
    summary = summary_of(rounds)
    assert [entry["round"] for entry in summary["rounds"]] == [1, 2, 10]
    assert summary["stop"]["verdict"] == "done"
    assert [test["passed"] for test in summary["stop"]["tests"]] == [True, False, False]


def test_a_type_without_held_out_questions_and_rounds_without_rules_are_noted(rounds: Path) -> None:
    for name, edit in (("1/plan.json", {}), ("2/clean.json", {"checked": False})):
        value = json.loads((rounds / name).read_text()) | edit
        if not edit:
            value["types"]["Rare | type"] = value["types"]["Spatial Relation"]
        (rounds / name).write_text(json.dumps(value))
    notes = summary_of(rounds)["notes"]
    assert ["Rare | type" in notes[0], "--unchecked" in notes[1], len(notes)] == [True, True, 2]
    assert "Rare &#124; type" in (rounds / "1/report.md").read_text()


def test_the_frozen_part_is_looked_at_once(rounds: Path) -> None:
    frozen = read_parts(rounds).parts["frozen"]
    assert summary_of(rounds)["final"] is None
    first = report_rounds(rounds, final=True)
    final = json.loads((rounds / "summary.json").read_text())["final"]
    assert final["n"] == len(frozen)
    assert final["arms"]["guided"]["vs_base"]["n"] == len(frozen)
    assert "vs_uniform" in final["arms"]["guided"]
    assert report_rounds(rounds, final=True) == first
    score(rounds / "2", run_of(dict.fromkeys(TYPES, 1.0), model="g2"))
    with raises_code("looked-before", SettingsError):
        report_rounds(rounds, final=True)
    assert summary_of(rounds)["final"] == final


def test_the_papers_way_is_labelled_everywhere(tmp_path: Path) -> None:
    base, rounds = write_scores(tmp_path / "m0", run_of()), tmp_path / "rounds"
    make_split(rounds, run_of(), paper=True)
    fill_round(rounds / "1", base)
    score(rounds / "1", run_of(dict.fromkeys(TYPES, 1.0), model="m1"))
    text = report_rounds(rounds)
    assert "evidence" in text
    pages = [rounds / name for name in ("report.html", "report.md", "1/report.html", "1/report.md")]
    assert all("nothing held out" in page.read_text() for page in pages)
    assert "--paper" in text
    assert json.loads((rounds / "summary.json").read_text())["paper"] is True
    with raises_code("no-frozen", SettingsError):
        report_rounds(rounds, final=True)


def test_text_of_a_model_is_shown_as_text(rounds: Path) -> None:
    rejected = {"request": "1-0000", "rule": HOSTILE, "detail": HOSTILE, "record": {"instruction": HOSTILE}}
    write_jsonl(rounds / "2/rejected.jsonl", [rejected])
    report = json.loads((rounds / "2/clean.json").read_text())
    (rounds / "2/clean.json").write_text(json.dumps(report | {"rejected": {HOSTILE: 3, "leaked": 1}}))
    score(rounds / "2", run_of(model=HOSTILE[:40].replace("/", "")))
    report_rounds(rounds)
    for name in ("report", "2/report"):
        html, markdown = ((rounds / f"{name}.{kind}").read_text() for kind in ("html", "md"))
        assert "&lt;script&gt;" in html
        for page in (html, markdown):
            assert "<script" not in page.replace("<script>\n", "")
            assert "<img" not in page
            assert "\x1b" not in page
            assert "\u202e" not in page
        assert "\n# H" not in markdown
        assert "[l](javascript" not in markdown
        rows = [line for line in markdown.splitlines() if "script" in line and line.startswith("|")]
        assert rows
        assert all("`x`" not in row and "**b**" not in row for row in rows)


def test_markdown_is_escaped() -> None:
    assert escape_markdown("a_b | <b> `c` &") == "a\\_b &#124; &lt;b&gt; &#96;c&#96; &amp;"


def test_the_command_says_what_it_wrote(
    rounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llava engine", "report", str(rounds)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("round 1 guided: ")
    assert lines[-1].endswith(f"{rounds / 'report.md'}")
