"""Test MMBench: circular and plain scores, three readings of a letter, categories, uploads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest

from llava import benchmarks
from llava.benchmarks.tasks import mmbench
from llava.errors import AnswersError, DataError
from llava.eval.model_vqa_mmbench import asks_of
from llava.schema import Answer, Scores
from support.benchmark_downloads import MAKERS
from support.errors import raises_code
from support.shared_data import realdata_folder

MMBENCH = benchmarks.get("mmbench")
TSV = "mmbench_dev_20230712.tsv"


@pytest.fixture(
    scope="module", params=[("mmbench", "llava-v1.5-7b"), ("mmbench_cn", "llava-v1.5-7b.dev_cn_20231003")]
)
def real(request: pytest.FixtureRequest) -> tuple[Scores, dict[str, object]]:
    folder = realdata_folder() / "mmbench"
    name, file = request.param
    benchmark = benchmarks.get(name)
    answers = benchmark.read_answers(folder / "answers_upload" / f"{file}.xlsx")
    return benchmark.score(folder, answers), json.loads((folder / "expected.json").read_text())[file]


def test_real_answers_score_as_the_official_evaluators_say(real: tuple[Scores, dict[str, object]]) -> None:
    scores, expected = real
    strict, first = expected["circular_strict_letter_equality"], expected["circular_first_char"]
    assert isinstance(strict, dict)
    assert isinstance(first, dict)
    assert scores.get("circular").value == expected["lmms_eval_static_overall"]
    assert scores.get("circular").n == expected["base_questions"] == scores.get("circular").of
    assert scores.get("circular_strict").value == strict["acc"]
    assert scores.get("circular_first_character").value == first["acc"]
    assert scores.get("plain_first_character").value == expected["vanilla_first_char_base_rows_acc"]
    assert f"{expected['rows']} rows make {expected['base_questions']} base questions" in scores.notes[0]


def test_a_base_question_counts_only_when_every_rotation_is_right(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    said = {7: "B", 1000007: "B", 8: "C. rain"}
    scores = MMBENCH.score(
        tmp_path, [replace(a, text=said.get(int(a.question_id), a.text)) for a in tiny.answers]
    )
    assert scores.get("circular").value == 50.0
    assert scores.get("circular_strict").value == 0.0
    assert scores.get("plain").value == 100.0
    assert scores.get("object", "type").value == 0.0
    assert scores.get("cause", "type").value == 100.0
    assert scores.get("LR", "l2-category").value == 100.0
    verdict = scores.verdicts[0]
    assert (verdict.answer, verdict.truth) == ("B | B", "B | A")


def test_prompts_hold_hint_and_literal_none(tmp_path: Path) -> None:
    MAKERS["mmbench"](tmp_path)
    first, _, third, *_ = MMBENCH.read_questions(tmp_path)
    suffix = "Answer with the option's letter from the given choices directly."
    assert first.text == f"Look.\nWhich?\nA. cat\nB. dog\n{suffix}"
    assert third.text == f"Why?\nA. None\nB. NA\nC. rain\n{suffix}"
    assert first.image_base64 == "aW1n"


def test_chinese_questions_end_with_the_chinese_sentence(tmp_path: Path) -> None:
    MAKERS["mmbench_cn"](tmp_path)
    assert benchmarks.get("mmbench_cn").read_questions(tmp_path)[0].text.endswith("\n请直接回答选项字母。")


def test_all_rounds_count_as_rotations(tmp_path: Path) -> None:
    MAKERS["mmbench"](tmp_path)
    rows = [
        (7, "BA"),
        (1000007, "AB"),
        (8, "CBA"),
        (1000008, "BAC"),
        (2000008, "ACB"),
    ]  # rotated left: the truth moves one letter down a round
    answers = [
        Answer(index, "", letter, extra={"round_id": number})
        for index, letters in rows
        for number, letter in enumerate(letters)
    ]
    assert MMBENCH.score(tmp_path, answers).get("circular").value == 100.0
    spoiled = [*answers[:-1], Answer(2000008, "", "C", extra={"round_id": 2})]
    assert MMBENCH.score(tmp_path, spoiled).get("circular").value == 50.0


def test_a_round_is_asked_with_the_text_that_scoring_gives_its_question(tmp_path: Path) -> None:
    MAKERS["mmbench"](tmp_path)
    first, _, third, *_ = (replace(item, image="aW1n") for item in mmbench.read_mmbench_items(tmp_path / TSV))
    asked = [ask.head["prompt"] for ask in asks_of(third, "", rounds=True, suffix=None)]
    assert asked == [third.rotate(number).text for number in range(3)]
    assert asked[1] == "Why?\nA. NA\nB. rain\nC. None"
    assert next(asks_of(first, "", rounds=False, suffix="?")).text == f"{first.text}\n?"


def test_the_upload_has_the_originals_columns(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    MMBENCH.write_submission(tmp_path, tiny.answers, tmp_path / "up.xlsx")
    rows = list(openpyxl.load_workbook(tmp_path / "up.xlsx").worksheets[0].iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (7, "Which?", "cat", "dog", None, None, "B", "B", "dev")
    with raises_code("missing-answers", AnswersError) as error:
        MMBENCH.write_submission(tmp_path, tiny.answers[:4], tmp_path / "none.xlsx")
    assert all(fact in str(error.value) for fact in ("1 of 5", "2000008"))
    assert not (tmp_path / "none.xlsx").exists()


@pytest.mark.parametrize("has_tsv", [True, False])
def test_a_blank_prediction_in_an_upload_is_wrong_and_noted(tmp_path: Path, has_tsv: bool) -> None:
    """The file cannot tell an empty answer from none, so scoring one's own upload must not need a flag."""
    tiny = MAKERS["mmbench"](tmp_path)
    answers = [*tiny.answers[:2], replace(tiny.answers[2], text="")]
    mmbench.write_mmbench_upload(tmp_path / TSV, answers, tmp_path / "up.xlsx", name="mmbench")
    if not has_tsv:
        (tmp_path / TSV).unlink()
    scores = MMBENCH.score(tmp_path, MMBENCH.read_answers(tmp_path / "up.xlsx"))
    assert scores.get("circular").value == 50.0
    assert any(note.startswith("3 predictions of the upload are blank") for note in scores.notes)


def test_a_tsv_without_answers_leaves_the_upload_to_the_server(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    rows = [line.split("\t") for line in (tmp_path / TSV).read_text().splitlines()]
    lines = ["\t".join(row[:7] + row[8:]) + "\n" for row in rows]  # column 7 is the answer
    (tmp_path / TSV).write_text("".join(lines))
    score = MMBENCH.score(tmp_path, tiny.answers).get("circular")
    assert score.value is None
    assert "server" in score.note


def test_an_upload_may_be_the_truth_for_other_answers(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    mmbench.write_mmbench_upload(tmp_path / TSV, tiny.answers, tmp_path / "up.xlsx", name="mmbench")
    assert MMBENCH.score(tmp_path, tiny.answers, truth=tmp_path / "up.xlsx").get("circular").value == 100.0


@pytest.mark.parametrize("text", ["", "AB", "ABCD"])
def test_several_letters_or_none_are_no_letter(tmp_path: Path, text: str) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    scores = MMBENCH.score(tmp_path, [Answer(7, "", text), *tiny.answers[1:]])
    assert scores.get("circular_strict").value == 50.0
    assert scores.verdicts[0].status == "unparsable"
    assert "1 rows name no option, 1 are not just a letter" in scores.notes[0]


def test_a_test_split_is_its_own_tsv_and_its_upload_leaves_out_control_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    lines = (tmp_path / TSV).read_text().splitlines()
    index = lines[0].split("\t").index("answer")
    bare = ["\t".join(c for n, c in enumerate(line.split("\t")) if n != index) for line in lines]
    (tmp_path / TSV).unlink()
    test = tmp_path / "mmbench_test_20230712.tsv"
    test.write_text("\n".join(bare) + "\n")
    said = [Answer(a.question_id, "", f"{a.text}\x05\n") for a in tiny.answers]
    assert MMBENCH.score(tmp_path, said, split="test_20230712").get("circular").value is None
    MMBENCH.write_submission(tmp_path, said, tmp_path / "a.xlsx", split="test_20230712")
    MMBENCH.write_submission(tmp_path, said, tmp_path / "b.xlsx", truth=test)
    for name in ("a.xlsx", "b.xlsx"):
        rows = list(openpyxl.load_workbook(tmp_path / name).active.iter_rows(values_only=True))
        column = rows[0].index("prediction")
        assert [row[column] for row in rows[1:]] == [f"{answer.text}\n" for answer in tiny.answers]
    assert f"{len(said)} predictions lose control characters" in caplog.text


@pytest.mark.parametrize("truth", ["", "C", "AB"])
def test_a_row_without_a_true_letter_is_not_scored_as_wrong(tmp_path: Path, truth: str) -> None:
    (tmp_path / TSV).write_text(f"index\tquestion\tA\tB\tanswer\n7\tq\tx\ty\tA\n8\tq\tx\ty\t{truth}\n")
    with raises_code("wrong-label", DataError) as error:
        MMBENCH.score(tmp_path, [Answer(7, "", "A"), Answer(8, "", "A")])
    assert all(fact in str(error.value) for fact in ("1 of 2", "index 8", repr(truth)))


def test_an_uploads_blanked_last_option_may_be_the_true_one(tmp_path: Path) -> None:
    rows = "7\tq\tx\ty\tNone\tC\n1000007\tq\tNone\tx\ty\tA\n2000007\tq\ty\tNone\tx\tB\n"
    (tmp_path / TSV).write_text(f"index\tquestion\tA\tB\tC\tanswer\n{rows}")
    said = [Answer(7, "", "C"), Answer(1000007, "", "A"), Answer(2000007, "", "B")]
    mmbench.write_mmbench_upload(tmp_path / TSV, said, tmp_path / "up.xlsx", name="mmbench")
    assert MMBENCH.score(tmp_path, said, truth=tmp_path / "up.xlsx").get("circular").value == 100.0


def test_without_every_rotation_there_is_no_circular_score(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    lines = (tmp_path / TSV).read_text().splitlines(keepends=True)
    for kept, lacking in (((0, 1, 3), "2 of 2"), ((0, 1, 2, 3, 5), "1 of 2")):
        (tmp_path / TSV).write_text("".join(lines[number] for number in kept))
        scores = MMBENCH.score(tmp_path, [tiny.answers[number - 1] for number in kept[1:]])
        assert scores.get("circular").value is None
        assert f"{lacking} base questions" in scores.get("circular").note
        assert scores.get("plain").value == 100.0
        assert [score.name for score in scores.scores if score.value is not None] == [
            "plain", "plain_strict", "plain_first_character",
        ]  # fmt: skip


HEADER = "index\tquestion\tA\tB\tanswer\n"


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        (HEADER + '1\t"How\tx\ty\tA\n2\t"Why\tx\ty\tA\n', "unmatched-quote", ":2"),
        (HEADER + '1\tq\tx\ty\tA\n2\t"How\tx\ty\tA\n3\tWhy"\tx\ty\tA\n', "unmatched-quote", ":3"),
        (HEADER + '1\tq\tx\ty\tA\n2\t"How\tx\ty\tA\n3\tq\tx"\ty\tA\n', "row-length", ":3"),
        (HEADER + '1\tq\tx\ty\t"A\n2\tq\tx\ty\tA\n', "unmatched-quote", ":2"),
        (HEADER + '1\t"How" many\tx\ty\tA\n', "unmatched-quote", ":2"),
        (HEADER + '"index\tq\tx\ty\tA\n', "unmatched-quote", ":2"),
        (HEADER + "1\tq\tx\ty\n", "row-length", ":2"),
        (HEADER + "1\tq\tx\ty\tA\t\n", "row-length", ":2"),
        (HEADER + "1\tq\tx\0\ty\tA\n", "not-tsv", ":2"),
        (HEADER + "1\tq\tx\udcff\ty\tA\n", "not-utf8", ":2"),
        (HEADER + "1\tq\tx\ty\tA\n" * 2, "repeated-id", ":3"),
        *((HEADER + f"{index}\tq\tx\ty\tA\n", "bad-id", ":2")
          for index in ("", "nan", "1.5", "-1", "1_0", "٣", "9" * 5000)),
        (HEADER.replace("B", "A") + "1\tq\tx\ty\tA\n", "repeated-key", ":1"),
        (HEADER, "no-questions", ""),
        ("", "no-questions", ""),
    ],
)  # fmt: skip
def test_a_tsv_that_could_lose_rows_is_refused_with_its_line(
    tmp_path: Path, content: str, code: str, place: str
) -> None:
    (tmp_path / TSV).write_bytes(content.encode("utf-8", "surrogateescape"))
    with raises_code(code, DataError) as error:
        MMBENCH.read_questions(tmp_path)
    assert f"{tmp_path / TSV}{place}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quoted_cell_may_hold_quotes_tabs_and_lines(tmp_path: Path) -> None:
    cells = ["1", '"a ""b""\tc\nd"', 'x "y"', "z", "A"]
    (tmp_path / TSV).write_text(HEADER + "\n" + "\t".join(cells) + "\n")
    (question,) = MMBENCH.read_questions(tmp_path)
    assert question.text.startswith('a "b"\tc\nd\nA. x "y"\nB. z\n')


def test_a_damaged_sheet_is_refused(tmp_path: Path) -> None:
    tiny = MAKERS["mmbench"](tmp_path)
    path = tmp_path / "up.xlsx"
    mmbench.write_mmbench_upload(tmp_path / TSV, tiny.answers, path, name="mmbench")
    whole = path.read_bytes()
    for content in (b"", b"index\tprediction\n", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with raises_code("not-xlsx", DataError) as error:
            MMBENCH.read_answers(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("index", [None, 1.5, True, "x", ""])
def test_an_index_in_a_sheet_is_a_whole_number(tmp_path: Path, index: object) -> None:
    book = openpyxl.Workbook()
    for row in (["index", "question", "A", "B", "prediction"], [7.0, "q", "x", "y", "A"], [index, *"qxyA"]):
        book.active.append(row)
    book.save(tmp_path / "up.xlsx")
    with raises_code("bad-id", DataError) as error:
        MMBENCH.read_answers(tmp_path / "up.xlsx")
    assert f"{tmp_path / 'up.xlsx'}: row 3: " in str(error.value)
