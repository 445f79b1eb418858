"""ScienceQA: ALL, IMG and the official classes on real answers; LLaVA's question file rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava import benchmarks
from llava.benchmarks.tasks.scienceqa import SUBJECTS, build_result_file, read_problems
from llava.errors import DataError
from llava.files import read_json
from llava.schema import Answer
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

SQA = benchmarks.get("scienceqa")
CLASSES = {
    "natural": ("natural science", "type"), "social": ("social science", "type"),
    "language": ("language science", "type"), "has_text": ("text", "context"),
    "has_image": ("image", "context"),
    "no_context": ("none", "context"), "grade_1_6": ("1-6", "grade"), "grade_7_12": ("7-12", "grade"),
    "average": ("ALL", "total"),
}  # fmt: skip


@pytest.mark.parametrize("file", ["llava-v1.5-13b.reconstructed.jsonl", "llava-v1.5-13b_result.json"])
def test_real_answers_score_as_the_original_says(realdata: Path, file: str) -> None:
    root = realdata / "scienceqa"
    expected = read_json(root / "expected.json")["llava-v1.5-13b"]
    scores = SQA.score(root, SQA.read_answers(root / "answers" / file))
    assert scores.get("ALL").value == expected["all_acc"]
    assert scores.get("IMG").value == expected["img_acc"]
    assert (scores.get("ALL").n, scores.get("IMG").n) == (expected["all_total"], expected["img_total"])


def test_the_result_file_is_the_originals(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "scienceqa"
    answers = SQA.read_answers(root / "answers/llava-v1.5-13b.reconstructed.jsonl")
    SQA.write_submission(root, answers, tmp_path / "result.json")
    assert read_json(tmp_path / "result.json") == read_json(root / "answers/llava-v1.5-13b_result.json")


def test_the_official_sizes_fit_each_other_and_the_published_questions(realdata: Path) -> None:
    sizes = SQA.official_sizes["test"]
    subjects, grades = SUBJECTS, ("grade/1-6", "grade/7-12")
    assert sum(sizes[name] for name in subjects) == sum(sizes[name] for name in grades) == sizes["ALL"]
    problems = read_problems(realdata / "scienceqa")
    contexts = [problem.text.startswith("Context: ") for problem in problems]
    images = [problem.image is not None for problem in problems]
    assert sizes["context/text"] == sum(contexts)
    assert sizes["context/image"] == sizes["IMG"] == sum(images)
    assert sizes["context/none"] == sum(
        not (text or image) for text, image in zip(contexts, images, strict=True)
    )


@pytest.fixture
def subset(realdata: Path, tmp_path: Path) -> Path:
    """The 361 real problems whose subject, grade and topic are known, laid out as the download is."""
    problems = read_json(realdata / "scienceqa/problems_partial_test.json")
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    return tmp_path


def test_the_breakdown_is_the_official_programs(realdata: Path, subset: Path) -> None:
    expected = read_json(realdata / "scienceqa/expected.json")[
        "official_evaluate_acc_on_361_subset(llava-v1.5-13b)"
    ]
    problems = read_json(subset / "problems.json")
    answers = SQA.read_answers(realdata / "scienceqa/answers/llava-v1.5-13b.reconstructed.jsonl")
    scores = SQA.score(subset, [answer for answer in answers if answer.question_id in problems])
    topics = {score.name: score for score in scores.scores if score.group == "topic"}
    for key, want in expected.items():
        name = key.removeprefix("acc_")
        score = scores.get(*CLASSES[name]) if name in CLASSES else topics.get(name)
        assert want == (f"{score.value:.2f}" if score else -1), key


def test_the_question_file_is_rebuilt_as_llavas(realdata: Path, subset: Path) -> None:
    SQA.prepare(subset, subset / "q.json")
    theirs = {row["id"]: row for row in read_json(realdata / "scienceqa/llava_test_CQM-A.json")}
    changed = [row["id"] for row in read_json(subset / "q.json") if row != theirs[row["id"]]]
    assert changed == ["42", "209", "600", "1714"]  # their hints were edited in the copy we have


def test_choices_and_answers_are_read_back_from_the_question_file(realdata: Path) -> None:
    known = read_json(realdata / "scienceqa/problems_minimal_derived.json")
    problems = read_problems(realdata / "scienceqa")
    assert len(problems) == len(known) == 4_241
    assert all(
        list(p.choices) == known[p.id]["choices"] and p.answer == known[p.id]["answer"] for p in problems
    )


def test_a_problem_that_is_listed_but_absent_is_named(subset: Path) -> None:
    (subset / "pid_splits.json").write_text(json.dumps({"test": ["4", "99999"]}))
    with raises_code("missing-problems", DataError) as error:
        SQA.read_questions(subset)
    assert "99999" in str(error.value)


@pytest.mark.parametrize("text", ["", "AB", "E", "F", "I think A", "a"])
def test_what_is_no_choice_is_wrong_even_where_the_first_is_right(tmp_path: Path, text: str) -> None:
    MAKERS["scienceqa"](tmp_path)
    scores = SQA.score(tmp_path, [Answer("9", "", text), Answer("4", "", "C")])
    assert (scores.verdicts[0].truth, scores.verdicts[0].score) == ("A", 0.0)
    assert build_result_file(read_problems(tmp_path), {"9": Answer("9", "", text)})["results"]["9"] == -1
