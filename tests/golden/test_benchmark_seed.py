"""Test SEED-Bench: exact letters, types and totals, video questions, the id that occurs twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava import benchmarks
from llava.benchmarks.tasks import seed
from llava.errors import AnswersError, DataError
from llava.files import read_jsonl
from llava.schema import Answer
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

SEED = benchmarks.get("seed")


def test_questions_are_written_as_llava_asks_them(tmp_path: Path) -> None:
    MAKERS["seed"](tmp_path)
    SEED.prepare(tmp_path, tmp_path / "q.jsonl")
    assert json.loads((tmp_path / "q.jsonl").read_text().splitlines()[0]) == {
        "question_id": 11,
        "image": "SEED-Bench-image/d11",
        "text": "Which is 11?\nA. thing a\nB. thing b\nC. thing c\nD. thing d\n"
        "Answer with the option's letter from the given choices directly.",
        "category": "default",
    }
    assert [q.id for q in SEED.read_questions(tmp_path, "all")] == [11, 12, 13, "v1"]
    assert SEED.read_questions(tmp_path, "all")[3].image == "SEED-Bench-video-image/v1.png"


def test_only_the_letter_itself_is_right_and_every_type_is_counted(tmp_path: Path) -> None:
    MAKERS["seed"](tmp_path)
    scores = SEED.score(tmp_path, [Answer(11, "", "B"), Answer(12, "", "A."), Answer(13, "", "b")])
    assert scores.get("Instance Location", "type").value == 50.0
    assert scores.get("Instances Counting", "type").value == 0.0  # all wrong: the original's KeyError
    assert scores.get("image").value == pytest.approx(100 / 3)
    assert scores.counts["unparsable"] == 2
    assert scores.headline == "image"
    wrong = scores.verdicts[1]
    assert (wrong.type, wrong.answer, wrong.truth, wrong.score) == ("Instance Location", "A.", "A", 0.0)
    assert wrong.facets["skill_id"] == "4"


def test_video_is_scored_when_it_was_asked_and_left_out_otherwise(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    assert [s.name for s in SEED.score(tmp_path, tiny.answers).scores if s.group == "total"] == ["image"]
    both = SEED.score(tmp_path, [*tiny.answers, Answer("v1", "", "A")])
    assert (both.get("image").value, both.get("video").value, both.get("total").value) == (100.0, 0.0, 75.0)


def test_lost_video_answers_do_not_make_a_total_of_the_image_questions(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    assert SEED.score(tmp_path, tiny.answers).notes == (
        "image questions only: 0 of 1 video questions have an answer",
    )
    with raises_code("missing-answers", AnswersError) as error:
        SEED.score(tmp_path, tiny.answers, split="all")
    assert "v1" in str(error.value)
    everything = SEED.score(tmp_path, tiny.answers, split="all", allow_missing=True)
    assert (everything.get("total").value, everything.get("total").count) == (75.0, "4 of 19242")
    with raises_code("missing-answers", AnswersError):
        SEED.write_submission(tmp_path, tiny.answers, tmp_path / "up.jsonl", split="all")


def test_answers_to_video_questions_without_truth_are_left_out_and_counted(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    scores = SEED.score(tmp_path, [*tiny.answers, Answer("v77", "", "A"), Answer("v78", "", "A")])
    assert scores.get("image").value == 100.0
    assert scores.notes[0].startswith("2 answers to video questions")
    with raises_code("unknown-questions", AnswersError) as error:
        SEED.score(tmp_path, [*tiny.answers, Answer(77, "", "A")])
    assert "77" in str(error.value)


def test_what_can_be_scored_can_be_submitted(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    SEED.write_submission(tmp_path, [*tiny.answers, Answer("v77", "", "A")], tmp_path / "up.jsonl")
    with raises_code("unknown-questions", AnswersError) as error:
        SEED.write_submission(tmp_path, [*tiny.answers, Answer(77, "", "A")], tmp_path / "no.jsonl")
    assert "77" in str(error.value)
    sent = [row["question_id"] for _, row in read_jsonl(tmp_path / "up.jsonl")]
    assert sent == [str(answer.question_id) for answer in tiny.answers]


def test_gpt4vs_answers_score_as_its_own_result_file_says(realdata: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line.rstrip(",\n"))
        for line in (realdata / "seed_bench/SEED-Bench-1_GPT-4V.json").read_text().splitlines()
        if line.startswith("{")
    ]
    said = {row["question_id"]: row for row in rows if not row["question_id"].startswith("v")}
    right = sum(row["prediction"] == row["gt_answer"] for row in said.values())
    right += said["49914"]["prediction"] == said["49914"]["gt_answer"]  # asked twice
    answers = [Answer(key, "", row["prediction"]) for key, row in said.items()]
    scores = SEED.score(tmp_path, answers, truth=realdata / "seed_bench/derived_answers.json")
    assert scores.get("image").n == 14_233
    assert scores.get("image").value == right / 14_233 * 100
    assert scores.get("image").quoted
    assert not scores.get("image").is_partial


def test_the_repeated_id_is_matched_by_position(realdata: Path) -> None:
    items = [
        i
        for i in seed.read_seed_items(realdata / "seed_bench/derived_answers.json")
        if i.question.id == 49914
    ]
    scores = seed.judge_items(items, [Answer(49914, "", "B"), Answer(49914, "", "C")], allow_missing=False)
    assert [verdict.score for verdict in scores.verdicts] == [1.0, 0.0]


def test_uploads_are_read_as_answers(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    SEED.write_submission(tmp_path, tiny.answers, tmp_path / "up.jsonl")
    assert SEED.score(tmp_path, SEED.read_answers(tmp_path / "up.jsonl")).get("image").value == 100.0


def test_an_upload_with_a_missing_answer_is_not_written(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    with raises_code("missing-answers", AnswersError) as error:
        SEED.write_submission(tmp_path, tiny.answers[:2], tmp_path / "up.jsonl")
    assert "13" in str(error.value)
    assert not (tmp_path / "up.jsonl").exists()


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "SEED-Bench.json").write_text("[]")
    with raises_code("record-shape", DataError) as error:
        SEED.read_questions(tmp_path)
    assert "SEED-Bench.json" in str(error.value)
