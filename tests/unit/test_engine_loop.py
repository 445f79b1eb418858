"""The rounds of the data engine: split, pool, plan and status, each alone and in a row."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.loop.gains import gain_interval, pairs_by_type
from llava.data_engine.loop.plan import (
    allocate,
    correct_guessing,
    make_plan,
    read_plan,
    shrink_accuracies,
    type_probabilities,
)
from llava.data_engine.loop.pool import chance_of, make_pool, question_stem, read_pool
from llava.data_engine.loop.round import RoundSettings, read_settings, start_round
from llava.data_engine.loop.similarity import MEASURES, pick_distinct
from llava.data_engine.loop.split import make_split, read_parts
from llava.errors import DataError, SettingsError
from llava.schema import Scores
from llava.scoring.metrics import write_scores
from support.engine_rounds import OPTIONS, TYPES, run_of
from support.errors import raises_code


def changed(scores: Scores, **changes: Any) -> Scores:
    """The scores with their first verdict changed."""
    return replace(scores, verdicts=(replace(scores.verdicts[0], **changes), *scores.verdicts[1:]))


@pytest.fixture
def rounds(tmp_path: Path) -> Path:
    make_split(tmp_path / "rounds", run_of())
    return tmp_path / "rounds"


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_scores(tmp_path / "m0", run_of())


# --- split ---


def test_the_split_keeps_images_whole_and_every_type_in_each_part(rounds: Path) -> None:
    split, scores = read_parts(rounds), run_of()
    images = [{v.image for v in scores.verdicts if v.question_id in ids} for ids in split.parts.values()]
    assert not images[0] & images[1]
    assert not (images[0] | images[1]) & images[2]
    assert frozenset().union(*split.parts.values()) == {v.question_id for v in scores.verdicts}
    for part, share in zip(split.parts, (0.4, 0.4, 0.2), strict=True):
        counts = Counter(verdict.type for verdict in split.select(scores, part))
        for kind, (count, _) in TYPES.items():
            assert abs(counts[kind] - share * count) <= 2, (part, kind)


def test_an_id_that_comes_twice_lies_in_one_part_with_both_its_images(tmp_path: Path) -> None:
    scores = run_of()
    twin = replace(scores.verdicts[-1], question_id=scores.verdicts[0].question_id)
    scores = replace(scores, verdicts=(*scores.verdicts[:-1], twin))
    split = make_split(tmp_path / "rounds", scores)
    found = [part for part in split.parts if twin in split.select(scores, part)]
    assert found == [part for part in split.parts if scores.verdicts[0] in split.select(scores, part)]
    assert sum(len(split.select(scores, part)) for part in split.parts) == len(scores.verdicts)


def test_questions_without_images_are_cut_too(tmp_path: Path) -> None:
    scores = run_of()
    scores = replace(scores, verdicts=tuple(replace(verdict, image=None) for verdict in scores.verdicts))
    assert [len(ids) for ids in make_split(tmp_path / "rounds", scores).parts.values()] == [96, 96, 48]


def test_a_split_is_written_once_and_honoured(rounds: Path) -> None:
    before = (rounds / "split.json").read_bytes()
    # Another model's answers, in another order, are about the same questions.
    other = run_of({"Text Understanding": 0.9})
    make_split(rounds, replace(other, verdicts=other.verdicts[::-1]))
    assert (rounds / "split.json").read_bytes() == before
    for settings in ({"seed": 1}, {"shares": (0.5, 0.5, 0.0)}, {"paper": True}):
        with raises_code("split-exists", SettingsError):
            make_split(rounds, other, **settings)
    for wrong in (
        replace(other, benchmark="mme"),
        changed(other, type="Instance Location"),
        changed(other, image="x.jpg"),
        replace(other, verdicts=other.verdicts[1:]),
    ):
        with raises_code("other-questions", DataError):
            make_split(rounds, wrong)
    assert (rounds / "split.json").read_bytes() == before


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.0, 0.0, 0.0), (1.2, -0.4, 0.2), ()])
def test_shares_that_are_no_shares_are_refused(tmp_path: Path, shares: tuple[float, ...]) -> None:
    with raises_code("out-of-range", SettingsError):
        make_split(tmp_path, run_of(), shares=shares)


def test_the_papers_way_guides_and_reports_on_everything(tmp_path: Path, metrics: Path) -> None:
    split = make_split(tmp_path / "rounds", run_of(), paper=True)
    assert split.parts["guide"] == split.parts["holdout"]
    assert (len(split.parts["guide"]), len(split.parts["frozen"])) == (240, 0)
    pool = make_pool(tmp_path / "rounds/1", metrics)
    assert pool["part"] == "all"
    settings = read_settings(tmp_path / "rounds/1")
    assert (settings.shrinkage, settings.give_up, settings.alpha) == ("none", False, 0.5)


def test_a_split_with_a_question_in_two_parts_is_refused(rounds: Path) -> None:
    value = json.loads((rounds / "split.json").read_text())
    value["parts"]["frozen"].append(value["parts"]["guide"][0])
    (rounds / "split.json").write_text(json.dumps(value))
    with raises_code("wrong-schema", DataError):
        read_parts(rounds)


# --- settings ---


def test_settings_are_written_once_and_edited_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "2-uniform"
    nasty = 'a "b" \\ é\x7f\n'
    first = start_round(folder, model_id=nasty, changes=["arm=uniform", "requests=7", 'shrinkage="none"'])
    assert first == RoundSettings(round=2, model_id=nasty, arm="uniform", requests=7, shrinkage="none")
    text = (folder / "round.toml").read_text()
    assert start_round(folder, model_id=nasty) == first
    assert (folder / "round.toml").read_text() == text
    (folder / "round.toml").write_text("requests = 9\nshrinkage = 12\n")  # the rest has its defaults
    assert read_settings(folder) == RoundSettings(round=2, requests=9, shrinkage=12)
    with raises_code("round-has-settings", SettingsError):
        start_round(folder, model_id=nasty, changes=["requests=7"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("request = 5", "unknown-setting"),
        ("requests = 5.5", "wrong-type"),
        ("requests = true", "wrong-type"),
        ("requests = 0", "out-of-range"),
        ("alpha = nan", "out-of-range"),
        ("guess = 1", "wrong-type"),
        ('arm = "both"', "unknown-choice"),
        ('shrinkage = "some"', "unknown-choice"),
        ("shrinkage = -1", "out-of-range"),
        ("round = 3", "round-name"),
        ("round = ", "not-toml"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/round.toml").write_text(text)
    with raises_code(code) as error:
        read_settings(tmp_path / "1")
    assert "round.toml" in str(error.value)


@pytest.mark.parametrize("name", ["first", "0", "0x", "12345678"])
def test_a_rounds_folder_is_named_after_its_number(tmp_path: Path, name: str) -> None:
    with raises_code("round-name", SettingsError):
        start_round(tmp_path / name, model_id="m")


# --- pool ---


def test_the_stem_of_a_question_is_what_is_compared() -> None:
    assert question_stem(f"Where is it?{OPTIONS}") == "Where is it?"
    assert question_stem("Is it?\nAnswer the question using a single word or phrase.") == "Is it?"
    assert question_stem("A. one\nB. two") == "A. one\nB. two"  # nothing else is there


@pytest.mark.parametrize(
    ("text", "chance"),
    [
        (f"Where is it?{OPTIONS}", 0.25),
        ("Q?\nA. x\nB. y", 0.5),
        ("Is it red? Please answer yes or no.", 0.5),
        ("What is it?\nAnswer the question using a single word or phrase.", None),
    ],
)
def test_the_level_of_guessing_is_known_where_options_are(text: str, chance: float | None) -> None:
    assert chance_of(text) == chance


def test_look_alikes_are_dropped_and_different_questions_stay() -> None:
    texts = [
        "What color is the man's shirt in the image?",
        "What color is the man's shirt in this image?",
        "What color is the man's shirt in the picture?",
        "How many chairs are around the table?",
        "?",
        "?",
    ]
    measure = MEASURES["tfidf"]
    picked = pick_distinct(texts, measure.prepare(texts), measure.threshold, Random(1))
    assert len(picked) == 3
    assert picked == pick_distinct(texts, measure.prepare(texts), measure.threshold, Random(1))
    assert len(pick_distinct(texts, measure.prepare(texts), 1.0, Random(1))) >= 4  # nothing is above 1


@pytest.mark.parametrize(
    ("measure", "module"), [("tfidf", "sklearn.feature_extraction.text"), ("spacy", "spacy")]
)
def test_a_measure_whose_package_is_missing_says_what_to_install(
    rounds: Path, metrics: Path, measure: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with raises_code("missing-package", SettingsError) as error:
        make_pool(rounds / "1", metrics, measure=measure)
    assert "pip install" in str(error.value)


def test_the_pool_holds_the_guide_parts_bad_cases_only(rounds: Path, metrics: Path) -> None:
    pool, split = make_pool(rounds / "1", metrics), read_parts(rounds)
    guide = split.select(run_of(), "guide")
    for kind, row in pool["types"].items():
        own = [verdict for verdict in guide if verdict.type == kind]
        assert row["n"] == len(own)
        assert row["accuracy"] == pytest.approx(sum(v.score for v in own) / len(own))
        assert row["low"] < row["accuracy"] < row["high"]
        assert row["bad"] == sum(v.score == 0 for v in own) >= row["kept"] == len(row["cases"]) > 0
        assert row["chance"] == 0.25
        assert {case["question_id"] for case in row["cases"]} <= split.parts["guide"]
        assert all((case["answer"], case["truth"]) == ("B", "A") for case in row["cases"])
    assert sum(row["holdout"] for row in pool["types"].values()) == len(split.parts["holdout"])
    first = (rounds / "1/pool.json").read_bytes()
    make_pool(rounds / "1", metrics)
    assert (rounds / "1/pool.json").read_bytes() == first


@pytest.mark.parametrize(
    ("scores", "code"),
    [
        (changed(run_of(), type="Visual Reasoning"), "other-questions"),
        (replace(run_of(), benchmark="gqa"), "other-questions"),
        (run_of(dict.fromkeys(TYPES, 1.0)), "no-bad-cases"),
        (
            replace(run_of(), verdicts=tuple(replace(v, status="unjudged") for v in run_of().verdicts)),
            "unjudged",
        ),
    ],
)
def test_scores_that_cannot_guide_are_refused(
    rounds: Path, tmp_path: Path, scores: Scores, code: str
) -> None:
    with raises_code(code, DataError):
        make_pool(rounds / "1", write_scores(tmp_path / "other", scores))
    assert not (rounds / "1/pool.json").exists()


def test_a_round_is_about_one_model(rounds: Path, metrics: Path, tmp_path: Path) -> None:
    make_pool(rounds / "1", metrics)
    other = write_scores(tmp_path / "m1", run_of(model="m1"))
    before = (rounds / "1/pool.json").read_bytes()
    with raises_code("other-model", DataError):
        make_pool(rounds / "1", other)
    assert (rounds / "1/pool.json").read_bytes() == before
    make_pool(rounds / "2", other)
    (rounds / "1/pool.json").write_bytes((rounds / "2/pool.json").read_bytes())
    with raises_code("other-round", DataError):
        read_pool(rounds / "1")


def test_unanswered_questions_are_wrong_but_no_bad_cases(rounds: Path, tmp_path: Path) -> None:
    verdicts = tuple(
        replace(v, status="unanswered", answer=None, score=0.0) if v.type == "Text Understanding" else v
        for v in run_of().verdicts
    )
    path = write_scores(tmp_path / "holes", replace(run_of(), verdicts=verdicts))
    row = make_pool(rounds / "1", path)["types"]["Text Understanding"]
    assert (row["accuracy"], row["bad"], row["kept"], row["cases"]) == (0.0, 0, 0, [])
    planned = make_plan(rounds / "1")["types"]["Text Understanding"]
    assert (planned["requests"], planned["given_up"]) == (0, "no bad case")


# --- plan ---


def test_requests_are_divided_by_largest_remainder() -> None:
    assert allocate([0.5, 0.3, 0.2], 7) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert allocate([1 / 3] * 3, 10) == [4, 3, 3]
    for seed in range(50):
        shares = [Random(seed).random() for _ in range(9)]
        shares = [share / sum(shares) for share in shares]
        counts = allocate(shares, 997)
        assert sum(counts) == 997
        assert all(abs(count - 997 * share) < 1 for count, share in zip(counts, shares, strict=True))


def test_shrinkage_guessing_and_the_smallest_share() -> None:
    assert shrink_accuracies([0.2, 0.6], [10, 10], 10) == pytest.approx([0.3, 0.5])
    assert shrink_accuracies([0.2, 0.6], [10, 10], "none") == [0.2, 0.6]
    assert shrink_accuracies([0.5, 0.52], [10, 10], "moments") == pytest.approx([0.51, 0.51])  # chance alone
    assert shrink_accuracies([0.7], [3], "moments") == [0.7]
    assert correct_guessing(0.625, 0.25) == 0.5
    assert (correct_guessing(0.1, 0.25), correct_guessing(0.4, None)) == (0.0, 0.4)
    shares = type_probabilities([1.0, 0.5, 0.0], 1.0, min_share=0.1)
    assert shares == pytest.approx([0.1, 0.1 + 0.7 / 3, 0.1 + 1.4 / 3])
    assert type_probabilities([1.0, 1.0], 0.5) == [0.5, 0.5]
    with raises_code("out-of-range", SettingsError):
        type_probabilities([0.5] * 9, 1.0, min_share=0.2)


def test_the_plan_asks_most_about_what_is_weakest(rounds: Path, metrics: Path) -> None:
    make_pool(rounds / "1", metrics, changes=["requests=300", "price=0.01", "rounds=1"])
    plan = make_plan(rounds / "1")
    counts = {name: row["requests"] for name, row in plan["types"].items()}
    assert sum(counts.values()) == plan["requests"] == 300
    assert counts["Text Understanding"] > counts["Spatial Relation"] > counts["Scene Understanding"] > 0
    power = plan["power"]
    assert power["cost"] == 3.0
    assert (power["overall"]["n"], power["flip_rate"], power["significance"]) == (96, 0.2, 0.05)
    assert not power["overall"]["can_be_seen"]
    assert any("cannot be seen" in sentence for sentence in power["sentences"])
    assert read_plan(rounds / "1") == plan


def test_the_uniform_arm_asks_about_all_types_evenly(rounds: Path, metrics: Path) -> None:
    make_pool(rounds / "1-uniform", metrics, changes=["arm=uniform", "requests=300"])
    assert {row["requests"] for row in make_plan(rounds / "1-uniform")["types"].values()} == {100}


def test_the_flips_of_another_run_tell_what_can_be_seen(rounds: Path, metrics: Path, tmp_path: Path) -> None:
    make_pool(rounds / "1", metrics)
    other = run_of(dict.fromkeys(TYPES, 1.0), model="m9")
    plan = make_plan(rounds / "1", compare=write_scores(tmp_path / "m9", other))
    guide = read_parts(rounds).select(run_of(), "guide")
    assert plan["power"]["flip_rate"] == pytest.approx(sum(v.score == 0 for v in guide) / len(guide))
    assert str(tmp_path / "m9") in plan["power"]["flips"]


def test_a_type_that_did_not_gain_is_given_up_for_good(rounds: Path, tmp_path: Path) -> None:
    runs = [
        {"Scene Understanding": 0.3, "Text Understanding": 0.25, "Spatial Relation": 0.3},
        {"Scene Understanding": 0.6, "Text Understanding": 0.25, "Spatial Relation": 0.6},
        {"Scene Understanding": 0.9, "Text Understanding": 0.95, "Spatial Relation": 0.6},
    ]
    for number, right in enumerate(runs, start=1):
        scores = run_of(right, model=f"m{number}")
        make_pool(rounds / str(number), write_scores(tmp_path / f"m{number}", scores))
        make_plan(rounds / str(number))
    rows = [read_plan(rounds / str(number))["types"] for number in (1, 2, 3)]
    reasons = [{name: row["given_up"] for name, row in types.items() if row["given_up"]} for types in rows]
    assert reasons[0] == {}
    assert list(reasons[1]) == ["Text Understanding"]
    assert reasons[1]["Text Understanding"].startswith("gain of round 1 within noise")
    assert sorted(reasons[2]) == ["Spatial Relation", "Text Understanding"]
    assert reasons[2]["Text Understanding"] == reasons[1]["Text Understanding"]
    assert reasons[2]["Spatial Relation"].startswith("gain of round 2 within noise")
    assert rows[2]["Scene Understanding"]["requests"] == 1000
    # The control arm knows nothing of gains, and two runs tell how many answers change.
    make_pool(rounds / "2-uniform", tmp_path / "m2", changes=["arm=uniform"])
    control = make_plan(rounds / "2-uniform")
    assert all(row["requests"] for row in control["types"].values())
    assert control["power"]["flip_rate"] == read_plan(rounds / "2")["power"]["flip_rate"] != 0.2


@pytest.mark.parametrize(
    ("up", "down", "kept"),
    [(9, 3, True), (5, 5, False), (12, 1, True), (1, 6, False), (3, 0, False), (0, 2, False)],
)
def test_only_a_type_that_surely_gains_less_than_others_is_given_up(
    rounds: Path, tmp_path: Path, up: int, down: int, kept: bool
) -> None:
    before, after = (run_of({"Scene Understanding": scene}, model=f"m{scene}") for scene in (0.3, 0.9))
    asked = [v for v in read_parts(rounds).select(before, "guide") if v.type == "Spatial Relation"]
    changes = {v.question_id for v in [v for v in asked if not v.score][:up]}
    changes |= {v.question_id for v in [v for v in asked if v.score][:down]}
    verdicts = [replace(v, score=1 - v.score) if v.question_id in changes else v for v in after.verdicts]
    after = replace(after, verdicts=tuple(verdicts))
    for number, run in enumerate((before, after), start=1):
        make_pool(rounds / str(number), write_scores(tmp_path / str(number), run), changes=["rounds=2"])
        make_plan(rounds / str(number))
    low, _ = gain_interval(pairs_by_type(before.verdicts, after.verdicts)["Spatial Relation"])
    assert (low > 0) == (up == 12)
    given_up = read_plan(rounds / "2")["types"]["Spatial Relation"]["given_up"]
    assert (given_up is None) == kept


def test_no_type_is_given_up_when_none_gains(rounds: Path, metrics: Path, tmp_path: Path) -> None:
    make_pool(rounds / "1", metrics)
    make_pool(rounds / "2", write_scores(tmp_path / "m1", run_of(model="m1")))
    first, second = (make_plan(rounds / name) for name in ("1", "2"))
    assert first["types"] == second["types"]


def test_all_types_are_asked_about_again_when_none_is_left(
    rounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"Scene Understanding": 0.3, "Text Understanding": 0.25, "Spatial Relation": 0.3}
    gained = {"Scene Understanding": 1.0, "Text Understanding": 0.25, "Spatial Relation": 1.0}
    for number, right in enumerate((start, gained), start=1):
        scores = write_scores(tmp_path / f"m{number}", run_of(right, model=f"m{number}"))
        make_pool(rounds / str(number), scores, changes=["requests=300"])
        monkeypatch.setattr(sys, "argv", ["llava engine", "plan", str(rounds / str(number))])
        main()
    first, second = (read_plan(rounds / name) for name in ("1", "2"))
    assert not first["notes"]
    (note,) = second["notes"]
    assert note in capsys.readouterr().out
    assert all(name in note for name in TYPES)
    counts = {name: row["requests"] for name, row in second["types"].items()}
    assert counts == {"Scene Understanding": 0, "Text Understanding": 300, "Spatial Relation": 0}


def test_the_interval_of_a_gain_also_exists_for_partial_points() -> None:
    low, high = gain_interval([(0.0, 1.0)] * 30 + [(1.0, 1.0)] * 10)
    assert 0.5 < low < 0.75 < high
    low, high = gain_interval([(0.3, 0.9)] * 30 + [(0.6, 0.6)] * 10)
    assert 0.2 < low < 0.45 < high


@pytest.mark.parametrize("name", ["pool.json", "round.toml", "../split.json", "../../m0/metrics.json"])
def test_a_step_refuses_what_changed_since(rounds: Path, metrics: Path, name: str) -> None:
    make_pool(rounds / "1", metrics)
    make_plan(rounds / "1")
    path = rounds / "1" / name
    path.write_text(path.read_text().replace("seed = 42", "seed = 43") + "\n")
    with raises_code("changed-input", DataError) as error:
        (read_plan if name in ("pool.json", "round.toml") else make_plan)(rounds / "1")
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda pool: pool.update(schema=2), "wrong-schema"),
        (lambda pool: pool.pop("types"), "wrong-schema"),
        (lambda pool: pool["types"].update(x=5), "wrong-schema"),
        (lambda pool: pool["types"]["Spatial Relation"].update(accuracy=7), "wrong-schema"),
        (lambda pool: pool["types"]["Spatial Relation"].pop("cases"), "wrong-schema"),
        (lambda pool: pool.update(metrics={}), "wrong-schema"),
        (lambda pool: pool.update(round=2), "other-round"),
    ],
)
def test_a_damaged_pool_is_refused(rounds: Path, metrics: Path, edit: Any, code: str) -> None:
    pool = make_pool(rounds / "1", metrics)
    edit(pool)
    (rounds / "1/pool.json").write_text(json.dumps(pool))
    with raises_code(code, DataError):
        make_plan(rounds / "1")


# --- commands ---


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["llava engine", *map(str, arguments)])
    main()


def test_the_steps_in_a_row_and_where_they_stand(
    tmp_path: Path, metrics: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = tmp_path / "rounds"
    command(monkeypatch, "split", rounds, metrics)
    assert "guide 96, holdout 96, frozen 48" in capsys.readouterr().out
    command(monkeypatch, "pool", rounds / "1", metrics.parent, "--set", "requests=50", "--threshold", "0.9")
    assert "96 questions of the guide part" in capsys.readouterr().out
    command(monkeypatch, "plan", rounds / "1")
    assert "plan: 50 requests over 3 of 3 types" in capsys.readouterr().out
    (rounds / "1/requests.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    (rounds / "1/responses.jsonl").write_text('{"id": "a", "cost": 1.25}\n{"id": "b", "co')  # being written
    better = write_scores(tmp_path / "m1", run_of(dict.fromkeys(TYPES, 1.0), model="m1"))
    command(monkeypatch, "score", rounds / "1", better)
    gain = re.search(
        r"score: m1 has 100.00 .* on 96 held-out questions; (\S+ \[.*\]) on m0\n", capsys.readouterr().out
    )
    assert gain
    (rounds / "10").mkdir()
    (rounds / "10/round.toml").write_text("requests = none\n")
    command(monkeypatch, "status", rounds)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["1", "guided", "m0"]
    assert lines[2].split()[3:] == [
        *("after.json", "2", "1", "-", "-", "$1.25"),
        *gain[1].split(),
    ]
    assert lines[3].startswith("10: ")
    command(monkeypatch, "pool", rounds / "1", metrics)  # another threshold: the plan is out of date
    command(monkeypatch, "status", rounds)
    assert "pool.json: changed since `llava engine plan`" in capsys.readouterr().out
