"""Test MM-Vet and LLaVA-Bench: stored grades give the published scores; else the judge's input is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llava import benchmarks
from llava.errors import AnswersError
from llava.files import read_json
from llava.schema import Answer
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

MMVET, LLAVA_BENCH = benchmarks.get("mmvet"), benchmarks.get("llava_bench")


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("model", ["llava-v1.5-7b", "llava-v1.5-13b"])
def test_mmvet_grades_give_the_published_numbers(realdata: Path, model: str, runs: int) -> None:
    root = realdata / "mmvet"
    expected = read_json(root / "expected.json")[f"{model}/{runs}runs"]
    scores = MMVET.score(root, MMVET.read_answers(root / f"results/{model}_gpt-4-grade-{runs}runs.json"))
    assert [scores.get(str(run + 1), "run").value for run in range(runs)] == expected["totals"]
    assert scores.judge == "gpt-4"
    assert not scores.warnings
    assert all(score.of == score.n for score in scores.scores if score.group in {"total", "ability"})
    for ability, value in expected["capability"].items():
        assert scores.get(ability, "ability").value == pytest.approx(value, rel=1e-13)
    assert scores.get("total").value == pytest.approx(sum(expected["totals"]) / runs, rel=1e-13)


@pytest.mark.parametrize(("model", "runs"), [("llava-v1.5-7b", 3), ("llava-v1.5-13b", 1)])
def test_mmvet_combinations_equal_the_stored_table(realdata: Path, model: str, runs: int) -> None:
    root = realdata / "mmvet/results"
    scores = MMVET.score(
        realdata / "mmvet", MMVET.read_answers(root / f"{model}_gpt-4-grade-{runs}runs.json")
    )
    ours = {frozenset(s.name.split("_")): s.value for s in scores.scores if s.group == "abilities"}
    with (root / f"{model}_gpt-4-cap-int-score-{runs}runs.csv").open() as stream:
        row = next(row for row in csv.DictReader(stream) if row[""] == model)
    theirs = {
        frozenset(k.split("_")): float(v) for k, v in row.items() if k not in {"", "total", "std", "runs"}
    }
    assert ours.keys() == theirs.keys()
    for needed, value in theirs.items():
        assert ours[needed] == pytest.approx(value, abs=0.1001), needed  # their table rounds run by run


def test_mmvet_answers_without_grades_write_the_judges_input(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "mmvet"
    answers = MMVET.read_answers(root / "answers/llava-v1.5-7b.jsonl")
    assert MMVET.score(root, answers).get("total").value is None
    MMVET.write_submission(root, answers, tmp_path / "in.json")
    assert (tmp_path / "in.json").read_bytes() == (root / "results/llava-v1.5-7b.json").read_bytes()


def test_the_built_mmvet_questions_equal_llavas(realdata: Path) -> None:
    root = realdata / "mmvet"
    assert MMVET.build(root, "test") == MMVET.read_questions(root)


@pytest.mark.parametrize("grades", [[1.5], [True], ["1"], 1])
def test_a_grade_that_is_none_is_refused(tmp_path: Path, grades: object) -> None:
    (tmp_path / "g.json").write_text(json.dumps({"v1_0": {"score": grades}}))
    with raises_code("wrong-grades", AnswersError) as error:
        MMVET.read_answers(tmp_path / "g.json")
    assert all(fact in str(error.value) for fact in ("v1_0", str(grades)))


@pytest.mark.parametrize("points", ["[8]", '[8, "9"]', "[true, 9]", "[8, 1e999]", f"[8, 1{'0' * 400}]", "8"])
def test_a_review_without_two_points_is_refused(tmp_path: Path, points: str) -> None:
    (tmp_path / "r.jsonl").write_text(
        f'{{"question_id": 1, "tuple": [8, 9]}}\n{{"question_id": 2, "tuple": {points}}}\n'
    )
    with raises_code("wrong-review", AnswersError) as error:
        benchmarks.get("llava_bench").read_answers(tmp_path / "r.jsonl")
    assert f"{tmp_path / 'r.jsonl'}:2: " in str(error.value)


@pytest.mark.parametrize("model", ["7b", "13b"])
@pytest.mark.parametrize("review", [1, 2, 3])
def test_llava_bench_reviews_give_the_published_numbers(realdata: Path, model: str, review: int) -> None:
    root = realdata / "llava_bench"
    file = f"llava-v1.5-{model}-eval{review}.jsonl"
    scores = LLAVA_BENCH.score(root, LLAVA_BENCH.read_answers(root / "reviews" / file))
    assert not scores.warnings
    assert all(score.of == score.n for score in scores.scores)
    for category, want in read_json(root / "expected.json")[file].items():
        name = category.removeprefix("llava_bench_")
        group = "total" if name == "all" else "type"
        got = [scores.get(name, g).value for g in (group, "GPT-4's points", "model's points")]
        assert [round(value or 0.0, 1) for value in got] == [want["relative"], want["gpt4"], want["model"]]


def test_llava_bench_answers_without_reviews_write_the_judges_prompts(tmp_path: Path) -> None:
    MAKERS["llava_bench"](tmp_path)
    rule = {"role": "Assistant", "prompt": "Rate them."}
    (tmp_path / "rule.json").write_text(json.dumps({f"llava_bench_{c}": rule for c in ("conv", "complex")}))
    (tmp_path / "context.jsonl").write_text('{"image": "001.jpg", "caption": "A hill."}\n')
    gpt4 = [json.dumps({"question_id": n, "text": f"gpt {n}"}) for n in range(2)]
    (tmp_path / "answers_gpt4.jsonl").write_text("\n".join(gpt4))
    answers = [Answer(n, "", f"said {n}") for n in range(2)]
    assert LLAVA_BENCH.score(tmp_path, answers).get("all").value is None
    LLAVA_BENCH.write_submission(tmp_path, answers, tmp_path / "in.jsonl")
    first = json.loads((tmp_path / "in.jsonl").read_text().splitlines()[0])
    assert first["category"] == "llava_bench_conv"
    assert first["prompt"] == (
        "[Context]\nA hill.\n\n[Question]\nWhat is 0?\n\n[Assistant 1]\ngpt 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nsaid 0\n\n[End of Assistant 2]\n\n[System]\nRate them.\n\n"
    )
