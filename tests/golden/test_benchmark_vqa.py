"""Test VQAv2, VizWiz and TextVQA: official scores against ten human answers, and identical uploads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava import benchmarks
from llava.benchmarks.tasks.textvqa import extract_question
from llava.benchmarks.vqa_answers import CONTRACTIONS, normalise, normalised_accuracy, official_accuracy
from llava.errors import AnswersError
from llava.files import read_json
from llava.schema import Answer, Score, Scores
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

VQAV2, VIZWIZ, TEXTVQA = (benchmarks.get(name) for name in ("vqav2", "vizwiz", "textvqa"))


def rounded(scores: Scores, group: str) -> dict[str, float | None]:
    return {s.name: s.value and round(s.value, 4) for s in scores.scores if s.group == group}


def test_vqav2_scores_are_the_official_programs(realdata: Path) -> None:
    folder = realdata / "vqav2/synthetic_golden"
    expected = read_json(folder / "expected.json")
    answers = VQAV2.read_answers(folder / "predictions.json")
    scores = VQAV2.score(folder, answers, split="val2014")
    raw, sent = (
        expected["official_VQAEval_raw_predictions"],
        expected["official_VQAEval_after_EvalAI_processor"],
    )
    assert round(scores.get("overall_raw").value or 0, 4) == raw["overall"]
    assert rounded(scores, "answer type (raw)") == raw["perAnswerType"]
    assert rounded(scores, "question type (raw)") == raw["perQuestionType"]
    assert round(scores.get("overall").value or 0, 4) == sent["overall"]
    assert rounded(scores, "type") == sent["perAnswerType"]
    assert rounded(scores, "question type") == sent["perQuestionType"]


def test_vqav2_questions_score_one_by_one_as_both_programs_say(realdata: Path) -> None:
    folder = realdata / "vqav2/synthetic_golden"
    expected = read_json(folder / "expected.json")
    said = {row["question_id"]: row["answer"] for row in read_json(folder / "predictions.json")}
    for row in read_json(folder / "annotations.json")["annotations"]:
        key, humans = row["question_id"], [human["answer"] for human in row["answers"]]
        official = 100 * official_accuracy(said[key], humans)
        m4c = 100 * normalised_accuracy(said[key], humans)
        assert official == pytest.approx(expected["official_VQAEval_per_question"][str(key)], abs=0.005)
        assert m4c == pytest.approx(expected["m4c_per_question"][str(key)], abs=0.005)
        assert normalise(said[key]) == expected["normalised"]["evalai_processor"][str(key)]


def test_the_real_fixture_scores_full_marks(realdata: Path) -> None:
    folder = realdata / "vqav2/fixture"
    expected = read_json(folder / "expected.json")
    answers = [Answer(row["question_id"], "", row["answer"]) for row in expected["predictions"]]
    scores = VQAV2.score(folder, answers, split="val2014")
    official = expected["official_VQAEval"]
    assert scores.get("overall_raw").value == official["overall"]
    assert rounded(scores, "answer type (raw)") == official["perAnswerType"]
    assert rounded(scores, "question type (raw)") == official["perQuestionType"]


def test_the_contraction_table_has_its_120_entries() -> None:
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["isnt"] == "isn't"
    assert CONTRACTIONS["yall'll"] == CONTRACTIONS["y'allll"] == "y'all'll"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"


@pytest.mark.parametrize("matches", range(11))
def test_matching_people_earn_0_3_6_9_and_then_all(matches: int) -> None:
    humans = ["cat"] * matches + [f"other{n}" for n in range(10 - matches)]
    assert official_accuracy("cat", humans) == pytest.approx(min(1.0, 0.3 * matches))


def test_unanimous_answers_are_compared_as_they_are() -> None:
    assert official_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert official_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert normalised_accuracy("Yes.", ["yes"] * 10) == 1.0
    assert official_accuracy("red car", [" red\tcar\n"] * 5 + ["red car"] * 5) == 1.0


def test_the_vizwiz_upload_is_the_originals_byte_by_byte(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "vizwiz"
    answers = VIZWIZ.read_answers(root / "answers/llava-v1.5-13b.jsonl")
    VIZWIZ.write_submission(root, answers, tmp_path / "up.json")
    assert (tmp_path / "up.json").read_bytes() == (root / "answers_upload/llava-v1.5-13b.json").read_bytes()
    assert VIZWIZ.score(root, answers).get("overall").value is None


def test_the_built_vizwiz_question_file_equals_llavas(realdata: Path, tmp_path: Path) -> None:
    theirs = VIZWIZ.read_questions(realdata / "vizwiz")
    tail = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    rows = [{"image": q.image, "question": q.text.split(tail)[0]} for q in theirs]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    assert VIZWIZ.prepare(tmp_path, tmp_path / "q.jsonl") == 8_000
    assert VIZWIZ.read_questions(tmp_path) == theirs


def test_the_vqav2_upload_covers_all_of_test2015(tmp_path: Path) -> None:
    for split, ids in (("test-dev2015", [1]), ("test2015", [1, 2])):
        rows = [
            json.dumps({"question_id": n, "image": "x.jpg", "text": "Q?", "category": "default"}) for n in ids
        ]
        (tmp_path / f"llava_vqav2_mscoco_{split}.jsonl").write_text("\n".join(rows) + "\n")
    VQAV2.write_submission(tmp_path, [Answer(1, "", "A dog.")], tmp_path / "up.json")
    assert (tmp_path / "up.json").read_text() == (
        '[{"question_id": 1, "answer": "dog"}, {"question_id": 2, "answer": ""}]'
    )
    with raises_code("missing-answers", AnswersError) as error:
        VQAV2.write_submission(tmp_path, [Answer(1, "", "A dog.")], tmp_path / "up.json", split="test2015")
    assert "1 of 2" in str(error.value)


def test_vqav2_questions_are_built_from_the_official_file(tmp_path: Path) -> None:
    MAKERS["vqav2"](tmp_path)
    question = VQAV2.read_questions(tmp_path, "val2014")[0]
    assert (question.id, question.image) == (42000, "COCO_val2014_000000000042.jpg")
    assert question.text == "How many?\nAnswer the question using a single word or phrase."
    official = {"questions": [{"question_id": 5, "image_id": 7, "question": "Q?"}]}
    (tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps(official))
    assert VQAV2.read_questions(tmp_path)[0].image == "COCO_test2015_000000000007.jpg"


def test_textvqa_scores_the_golden_answers(golden: Path) -> None:
    folder = golden / "xi_scripts/textvqa"
    scores = TEXTVQA.score(folder, TEXTVQA.read_answers(folder / "res.jsonl"), truth=folder / "ann.json")
    assert f"{scores.get('accuracy').value:.2f}" == "70.00"


def test_the_built_textvqa_question_file_equals_llavas(realdata: Path, tmp_path: Path) -> None:
    theirs = TEXTVQA.read_questions(realdata / "textvqa")
    lines = [q.text.split("\n") for q in theirs]
    tokens = {
        str(q.id): line[1].removeprefix("Reference OCR token: ")
        for q, line in zip(theirs, lines, strict=True)
    }
    rows: list[dict[str, Any]] = [
        {"image_id": q.id, "question": line[0], "answers": []} for q, line in zip(theirs, lines, strict=True)
    ]
    ocr = [
        {"image_id": key, "ocr_tokens": words.split(", ") if words else []} for key, words in tokens.items()
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps({"data": ocr}))
    TEXTVQA.prepare(tmp_path, tmp_path / "q.jsonl")
    assert (tmp_path / "q.jsonl").read_bytes() == (
        realdata / "textvqa/llava_textvqa_val_v051_ocr.jsonl"
    ).read_bytes()


def test_two_textvqa_questions_about_one_image_are_scored_separately(tmp_path: Path) -> None:
    tiny = MAKERS["textvqa"](tmp_path)
    first, second = tiny.answers
    wrong = Answer(second.question_id, second.prompt, "Sony")
    for answers in ([first, wrong], [wrong, first]):
        assert [v.score for v in TEXTVQA.score(tmp_path, answers).verdicts] == [1.0, 0.0]


def test_answers_with_textvqas_question_ids_may_have_any_prompt(tmp_path: Path) -> None:
    tiny = MAKERS["textvqa"](tmp_path)
    path = tmp_path / "TextVQA_0.5.1_val.json"
    truth = json.loads(path.read_text())
    for number, row in enumerate(truth["data"], start=34602):
        row["question_id"] = number
    path.write_text(json.dumps(truth))
    said = [replace(a, question_id=34602 + n, prompt="Q: what?") for n, a in enumerate(tiny.answers)]
    assert TEXTVQA.score(tmp_path, said[::-1]).get("accuracy").value == 100.0
    with raises_code("unknown-prompt", AnswersError):
        TEXTVQA.score(tmp_path, [replace(a, prompt="Q: what?") for a in tiny.answers])


def test_a_prompt_without_a_question_is_refused() -> None:
    with raises_code("unknown-prompt", AnswersError) as error:
        extract_question("What?")
    assert "What?" in str(error.value)


def test_soft_scores_get_an_interval(tmp_path: Path) -> None:
    MAKERS["vqav2"](tmp_path)
    score: Score = VQAV2.score(
        tmp_path, [Answer(42000, "", "2"), Answer(42001, "", "a few")], split="val2014"
    ).get("overall")
    assert score.value == pytest.approx(65.0)
    assert score.low is not None
    assert 0.0 < score.low < 65.0 < (score.high or 0.0) < 100.0
