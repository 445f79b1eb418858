"""Test GQA: the official metrics, metrics that are not available, and the predictions file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava import benchmarks
from llava.errors import AnswersError, DataError
from llava.schema import Answer, Score
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

GQA = benchmarks.get("gqa")


def test_every_metric_equals_the_official_programs(realdata: Path) -> None:
    folder = realdata / "gqa/synthetic_golden"
    expected = json.loads((folder / "expected.json").read_text())
    answers = GQA.read_answers(folder / "synth_predictions.json")
    scores = GQA.score(folder, answers, truth=folder / "synth_questions.json")
    for name in (
        "binary",
        "open",
        "accuracy",
        "consistency",
        "validity",
        "plausibility",
        "grounding",
        "distribution",
    ):
        assert scores.get(name).value == expected[name], name
        assert scores.get(name).low is not None
    groups = {"type": "accuracyPerStructuralType", "semantic": "accuracyPerSemanticType",
              "steps": "accuracyPerSteps", "words": "accuracyPerLength"}  # fmt: skip
    for group, key in groups.items():
        got = {s.name: {"accuracy": s.value, "count": s.n} for s in scores.scores if s.group == group}
        assert got == expected[key]
    assert scores.get("distribution").better == "lower"


def test_metrics_without_their_files_are_not_available_instead_of_zero(tmp_path: Path) -> None:
    tiny = MAKERS["gqa"](tmp_path)
    scores = GQA.score(tmp_path, tiny.answers)
    for name, needed in (("validity", "choices"), ("plausibility", "choices"), ("grounding", "scene graphs")):
        assert scores.get(name).value is None
        assert needed in scores.get(name).note


def test_consistency_needs_answers_to_the_entailed_questions(realdata: Path) -> None:
    folder = realdata / "gqa/synthetic_golden"
    questions = json.loads((folder / "synth_questions.json").read_text())
    answers = GQA.read_answers(folder / "synth_predictions.json")
    balanced = [answer for answer in answers if questions[str(answer.question_id)]["isBalanced"]]
    scores = GQA.score(folder, balanced, truth=folder / "synth_questions.json")
    assert scores.get("accuracy").value == pytest.approx(59.88112927191679)
    assert scores.get("consistency").value is None
    assert "needs questions and predictions for entailed ones" in scores.get("consistency").note


def test_predictions_are_lower_case_without_final_periods(tmp_path: Path) -> None:
    tiny = MAKERS["gqa"](tmp_path)
    GQA.write_submission(tmp_path, tiny.answers, tmp_path / "p.json")
    assert (tmp_path / "p.json").read_text() == (
        '[{"questionId": "201", "prediction": "yes"}, {"questionId": "202", "prediction": "dark blue"}]'
    )


def test_contradicting_answers_are_not_submitted(tmp_path: Path) -> None:
    tiny = MAKERS["gqa"](tmp_path)
    with raises_code("conflicting-answers", AnswersError) as error:
        GQA.write_submission(tmp_path, [*tiny.answers, Answer("201", "", "no")], tmp_path / "p.json")
    assert "201" in str(error.value)


def test_the_built_question_file_equals_llavas(realdata: Path, tmp_path: Path) -> None:
    theirs = GQA.read_questions(realdata / "gqa")
    rows = {
        str(q.id): {
            "question": q.text.split("\n")[0],
            "imageId": (q.image or "").removesuffix(".jpg"),
            "isBalanced": True,
        }
        for q in theirs
    }
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    assert GQA.prepare(tmp_path, tmp_path / "q.jsonl") == 12_578
    assert (tmp_path / "q.jsonl").read_bytes() == (
        realdata / "gqa/llava_gqa_testdev_balanced.jsonl"
    ).read_bytes()


def test_a_record_without_a_key_is_the_users_error(tmp_path: Path) -> None:
    tiny = MAKERS["gqa"](tmp_path)
    path = tmp_path / "data/testdev_balanced_questions.json"
    path.write_text(path.read_text().replace('"structural"', '"structure"'))
    with raises_code("missing-key", DataError) as error:
        GQA.score(tmp_path, tiny.answers)
    assert all(fact in str(error.value) for fact in (str(path), "structural"))


HALVES = [[0.0, 0.0, 0.5, 1.0, 0.5], [0.5, 0.0, 1.0, 1.0, 0.5]]
NO_WEIGHT = [[0.0, 0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("attention", "grounding"),
    [
        (HALVES, 50.0),
        (HALVES + 3 * NO_WEIGHT, 50.0),
        (NO_WEIGHT, 0.0),
        ([[1.0]], 50.0),
        ([[0.04] * 5] * 5, 50.0),
        ([[0.2] * 5, *[[0.0] * 5] * 4], 100.0),
        ([[0.25, 0.25], [0.25, 0.25]], 50.0),
    ],
)
def test_attention_is_on_a_map_or_on_objects(
    tmp_path: Path, attention: list[list[float]], grounding: float
) -> None:
    score = _score_attention(tmp_path, attention)
    assert score.value == pytest.approx(grounding)


def test_what_question_and_answer_both_name_counts_twice_as_in_the_official_program(tmp_path: Path) -> None:
    score = _score_attention(tmp_path, [[1.0, 0.0], [0.0, 0.0]], in_answer=True)
    assert score.value == 200.0
    assert "counts twice" in score.note


@pytest.mark.parametrize(
    "attention",
    [
        [[0.5, 0.5, 0.5]],
        [[0.0, 0.0, 200.0, 300.0, 1.0]],
        [[0.0, 0.0, 1.0, 1.0, 1.0]] * 2,
        [[0.9, 0.9], [0.9, 0.9]],
        [[1.5, -0.5], [0.0, 0.0]],
    ],
)
def test_attention_that_is_no_probability_is_refused(tmp_path: Path, attention: list[list[float]]) -> None:
    with raises_code("wrong-attention", DataError) as error:
        _score_attention(tmp_path, attention)
    assert "testdev_balanced_attentions.json" in str(error.value)


def _score_attention(folder: Path, attention: list[list[float]], *, in_answer: bool = False) -> Score:
    """Score the attention on the left half of an image, which the question names and perhaps the answer."""
    names = {"0": "1"}
    question = {
        "question": "Which?", "imageId": "7", "isBalanced": True, "answer": "left", "entailed": [],
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"}, "groups": {"global": None},
        "semantic": [], "annotations": {"question": names, "fullAnswer": names if in_answer else {}},
    }  # fmt: skip
    graph = {"width": 200, "height": 300, "objects": {"1": {"x": 0, "y": 0, "w": 100, "h": 300}}}
    files = {"questions": {"5": question}, "sceneGraphs": {"7": graph}, "attentions": {"5": attention}}
    for what, value in files.items():
        (folder / f"testdev_balanced_{what}.json").write_text(json.dumps(value))
    return GQA.score(folder, [Answer("5", "", "left")]).get("grounding")
