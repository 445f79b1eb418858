"""POPE: labels by position, lengths that must agree, the parsing rule, F1 with its interval."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llava import benchmarks
from llava.benchmarks.tasks import pope
from llava.errors import AnswersError, DataError
from llava.files import read_jsonl
from llava.schema import Answer
from support.benchmark_downloads import MAKERS
from support.errors import raises_code

POPE = benchmarks.get("pope")


def real_answers(realdata: Path) -> list[Answer]:
    with gzip.open(realdata / "pope/answers/llava-v1.5-7b.haoming_partial.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    return [Answer(row["question_id"], row["prompt"], row["text"]) for row in rows]


def test_the_partial_public_file_is_refused_with_its_coverage(realdata: Path) -> None:
    answers = real_answers(realdata)
    with raises_code("missing-answers", AnswersError) as error:
        POPE.score(realdata / "pope", answers)
    assert "3198 of 8910" in str(error.value)
    scores = POPE.score(realdata / "pope", answers, allow_missing=True)
    assert scores.get("adversarial", "type").value == pytest.approx(85.1333333)
    assert scores.get("popular", "type").value == 0.0


def test_f1_on_real_answers_is_recomputed_by_hand(realdata: Path) -> None:
    answers = {answer.question_id: answer.text for answer in real_answers(realdata)}
    labels = [row for _, row in read_jsonl(realdata / "pope/coco/coco_pope_adversarial.json")]
    pairs = [(row["label"], answers[row["question_id"]].split(".")[0].lower()) for row in labels]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("no", "yes"))
    fn = pairs.count(("yes", "no"))
    scores = POPE.score(realdata / "pope", real_answers(realdata), allow_missing=True)
    f1 = scores.get("adversarial", "F1")
    assert f1.value == pytest.approx(200 * tp / (2 * tp + fp + fn), rel=1e-12)
    assert f1.low is not None
    assert 1.0 < (f1.high or 0) - f1.low < 5.0


def test_the_built_question_file_equals_llavas(realdata: Path, tmp_path: Path) -> None:
    POPE_FILE = "llava_pope_test.jsonl"
    (tmp_path / "coco").symlink_to(realdata / "pope/coco")
    assert POPE.prepare(tmp_path, tmp_path / POPE_FILE) == 8_910
    assert (tmp_path / POPE_FILE).read_bytes() == (realdata / "pope" / POPE_FILE).read_bytes()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"), ("No.", "no"), ("There is not.", "no"), ("yes, no", "no"), ("Nothing", "yes"),
        ("Yes. No", "yes"), ("NO", "yes"), ("", "yes"), ("no,", "no"),
    ],
)  # fmt: skip
def test_only_these_words_mean_no(text: str, answer: str) -> None:
    assert pope.parse_pope_answer(text) == answer


def test_labels_and_questions_of_other_lengths_are_refused(tmp_path: Path) -> None:
    tiny = MAKERS["pope"](tmp_path)
    POPE.prepare(tmp_path, tmp_path / "llava_pope_test.jsonl")
    path = tmp_path / "coco/coco_pope_random.json"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with raises_code("label-mismatch", DataError) as error:
        POPE.score(tmp_path, tiny.answers)
    assert all(fact in str(error.value) for fact in ("random", "3", "2"))


def test_labels_of_another_order_are_refused(tmp_path: Path) -> None:
    tiny = MAKERS["pope"](tmp_path)
    POPE.prepare(tmp_path, tmp_path / "llava_pope_test.jsonl")
    path = tmp_path / "coco/coco_pope_random.json"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with raises_code("label-mismatch", DataError) as error:
        POPE.score(tmp_path, tiny.answers)
    assert all(fact in str(error.value) for fact in ("10000001", "Is there a cat"))


def test_an_empty_list_is_an_error_not_a_division(tmp_path: Path) -> None:
    MAKERS["pope"](tmp_path)
    (tmp_path / "coco/coco_pope_random.json").write_text("")
    with raises_code("empty-list", DataError) as error:
        POPE.read_questions(tmp_path)
    assert "coco_pope_random.json" in str(error.value)


def test_a_list_without_labels_is_left_out_and_counted(tmp_path: Path) -> None:
    tiny = MAKERS["pope"](tmp_path)
    POPE.prepare(tmp_path, tmp_path / "llava_pope_test.jsonl")
    for name in ("random", "popular"):
        (tmp_path / f"coco/coco_pope_{name}.json").unlink()
    scores = POPE.score(tmp_path, tiny.answers)
    assert scores.get("F1").value == 100.0
    assert scores.counts["questions"] == 3
    assert scores.notes == ("6 questions are of lists without labels (random, popular); they are left out",)
    with raises_code("unknown-questions", AnswersError) as error:
        POPE.score(tmp_path, [*tiny.answers, Answer(77, "", "Yes")])
    assert "77" in str(error.value)
