"""MME: both layouts of the truth, the official numbers for two models, lost lines that do not shift pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llava import benchmarks
from llava.benchmarks.tasks import mme
from llava.errors import AnswersError, DataError
from llava.files import read_jsonl
from llava.schema import Answer
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

MME = benchmarks.get("mme")
SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("name", "folder"),
    [("llava-v1.5-7b-vanilla", "results_txt/llava-v1.5-7b-vanilla"), ("LaVIN", "sample_LaVIN")],
)
def test_real_answers_score_as_the_official_tool_says(realdata: Path, name: str, folder: str) -> None:
    root = realdata / "mme"
    expected = json.loads((root / "expected.json").read_text())[name]
    scores = MME.score(root, MME.read_answers(root / folder))
    assert scores.get("perception").value == expected["perception_total"]
    assert scores.get("cognition").value == expected["cognition_total"]
    assert all(score.of == score.n for score in scores.scores if score.group != "confusion")
    assert not scores.warnings
    for subtask, want in expected["subtasks"].items():
        assert scores.get(subtask, "type").value == want["score"]
        assert scores.get(subtask, "type").n == want["n_questions"]
        assert scores.get(subtask, "acc").value == want["acc"]
        assert scores.get(subtask, "acc+").value == pytest.approx(want["acc_plus"], rel=1e-15)
        assert scores.get(subtask, "acc+").n == want["n_images"]
        counts = {key: want[key] for key in ("TP", "FN", "TN", "FP")} | {"other": want["other_num"]}
        for key, value in counts.items():
            assert scores.get(f"{subtask} {key}", "confusion").value == value


def test_questions_built_from_the_truth_are_llavas(realdata: Path) -> None:
    theirs = [row for _, row in read_jsonl(realdata / "mme/llava_mme.jsonl")]
    ours = [
        {"question_id": q.id, "image": q.image, "text": q.text, "category": q.category}
        for q in MME.build(realdata / "mme", "test")
    ]
    order = sorted(map(json.dumps, ours))
    assert order == sorted(map(json.dumps, theirs))


def test_a_truncated_answers_file_is_refused_and_does_not_shift_pairs(realdata: Path) -> None:
    root = realdata / "mme"
    answers = MME.read_answers(root / "answers/llava-v1.5-7b.haoming.jsonl")
    with raises_code("missing-answers", AnswersError) as error:
        MME.score(root, answers)
    assert all(fact in str(error.value) for fact in ("6 of 2374", "scene/Places365_val_00000130"))
    scores = MME.score(root, answers, allow_missing=True)
    assert scores.counts["unanswered"] == 6
    assert scores.get("existence", "type").value == 190.0
    assert scores.get("scene", "acc+").n == 200


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"), ("no.", "no"), (" Yes\n", "yes"), ("Nope", "no"), ("know", "no"), ("Not", "no"),
        ("The answer is yes", None), ("", None), ("yes, no", "yes"), ("n", None),
    ],
)  # fmt: skip
def test_the_first_four_characters_decide(text: str, answer: str | None) -> None:
    assert mme.parse_mme_answer(text) == answer


def test_both_layouts_give_the_same_questions(tmp_path: Path) -> None:
    MAKERS["mme"](tmp_path)
    ids = {q.id for q in MME.read_questions(tmp_path)}
    assert ids == {"existence/0001.jpg", "existence/3.jpg", "count/2.png", "count/5.png",
                   "posters/images/tt1.jpg", "posters/images/tt2.jpg"}  # fmt: skip
    assert MME.read_questions(tmp_path)[0].text == f"Is there a cat?{SUFFIX}"


def test_answers_are_read_from_the_eval_tools_files(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    MME.write_submission(tmp_path, tiny.answers, tmp_path / "results")
    assert (tmp_path / "results/posters.txt").read_text().splitlines()[:2] == [
        "tt1.jpg\tIs there a cat?  Please answer yes or no.\tYes\tYes",
        "tt1.jpg\tIs there a dog? Please answer yes or no.\tNo\tNo.",
    ]
    assert MME.score(tmp_path, MME.read_answers(tmp_path / "results")).get("perception").value == 600.0


def test_the_eval_tools_results_folder_serves_as_truth(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    MME.write_submission(tmp_path, tiny.answers, tmp_path / "eval_tool/Your_Results")
    shutil.rmtree(tmp_path / "MME_Benchmark_release_version")
    assert MME.score(tmp_path, tiny.answers).get("perception").value == 600.0


def test_one_wrong_answer_costs_its_image(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    wrong = Answer(tiny.answers[0].question_id, tiny.answers[0].prompt, "No")
    scores = MME.score(tmp_path, [wrong, *tiny.answers[1:]])
    assert scores.get("existence", "acc").value == 75.0
    assert scores.get("existence", "acc+").value == 50.0
    assert scores.get("existence", "type").value == 125.0
    assert scores.get("perception").value == 525.0


def test_precision_and_recall_have_an_interval(realdata: Path) -> None:
    root = realdata / "mme"
    scores = MME.score(root, MME.read_answers(root / "results_txt/llava-v1.5-7b-vanilla"))
    for name, lost in (("precision", "FP"), ("recall", "FN")):
        counts = {key: scores.get(f"count {key}", "confusion").value or 0.0 for key in ("TP", lost)}
        score = scores.get(f"count {name}", "confusion")
        assert score.value == counts["TP"] / sum(counts.values())
        assert (score.interval, score.n, len(score.units or {})) == ("wilson", 60, 30)
        assert score.low is not None
        assert 0.05 < (score.high or 0.0) - score.low < 0.3


def test_an_image_with_one_question_is_named(tmp_path: Path) -> None:
    MAKERS["mme"](tmp_path)
    path = tmp_path / "MME_Benchmark_release_version/existence/0001.txt"
    path.write_text("Is there a cat? Please answer yes or no.\tYes\n")
    with raises_code("unpaired-image", DataError) as error:
        MME.score(tmp_path, [])
    assert "existence/0001" in str(error.value)


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"Is it\0?\tNo", "not-tsv"), (b"Is it\xff?\tNo", "not-utf8"), (b"Is it? No", "missing-column")],
)
def test_a_damaged_line_of_a_table_is_named(tmp_path: Path, line: bytes, code: str) -> None:
    MAKERS["mme"](tmp_path)
    path = tmp_path / "MME_Benchmark_release_version/count/2.txt"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line)
    with raises_code(code, DataError) as error:
        MME.read_questions(tmp_path)
    assert f"{path}:2: " in str(error.value)
