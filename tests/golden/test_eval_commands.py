"""The answering commands: the original's flags, prompts and rows; clear words where the input is wrong."""

from __future__ import annotations

import ast
import base64
import functools
import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava import command
from llava.files import read_json, read_jsonl, write_json, write_jsonl
from llava.infer.engine.requests import Generation
from llava.model.llava_arch import LlavaMetaForCausalLM
from support.tiny_model import generate_alone, tiny_model

ROW = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
SUFFIX = "Answer with the option's letter from the given choices directly."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: "
)


class Commands:
    """Runs commands in this process, with the tiny model in place of loading one.

    It babbles up to the limit, so more than 8 new tokens are noted in `limits` and not waited for.
    """

    def __init__(self, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.golden = golden
        self.loads = 0
        self.limits: list[int] = []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("llava.infer.jobs.flags.Generation", self._generation)
        monkeypatch.setattr("llava.infer.engine.load.load", self._load)

    def _load(self, choice: Any) -> Any:
        self.loads += 1
        return tiny_model(self.golden)

    def _generation(self, *picking: Any, **more: Any) -> Generation:
        asked = Generation(*picking, **more)
        self.limits.append(asked.max_new_tokens)
        return replace(asked, max_new_tokens=min(asked.max_new_tokens, 8))

    def run(self, module: str, *flags: str | Path) -> int:
        """The command's exit code."""
        argv = [module, "--model-path", str(self.golden / "weights/tiny-pretrain"), *map(str, flags)]
        self._monkeypatch.setattr(sys, "argv", argv)
        try:
            command.run(importlib.import_module(f"llava.{module}").main)
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    def answer(self, module: str, *flags: str | Path) -> int:
        """The exit code of an answering command, greedy."""
        base = self.golden / "weights/tiny-vicuna-v1.5"
        greedy = ("--model-base", base, "--temperature", "0", "--conv-mode", "vicuna_v1")
        return self.run(f"eval.{module}", *greedy, *flags)


@pytest.fixture
def commands(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(golden, monkeypatch)


def write_questions(folder: Path, golden: Path, *, images: tuple[str, ...] = ("a_640x480.png",)) -> Path:
    """Five questions; ids and prompts repeat as MME's and TextVQA's do."""
    rows = [
        {
            "question_id": f"id{n // 2}",
            "image": images[n % len(images)],
            "text": f"Wörd {n // 4}?",
            "category": "c",
        }
        for n in range(5)
    ]
    write_jsonl(folder / "questions.jsonl", rows)
    return folder / "questions.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_loader_rows_are_the_originals(commands: Commands, tmp_path: Path) -> None:
    images = ("a_640x480.png", "b_333x500.png")
    questions = write_questions(tmp_path, commands.golden, images=images)
    out = tmp_path / "deep" / "answers.jsonl"
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--answers-file",
        out,
    )
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "6") == 0
    rows = rows_of(out)
    assert [list(row) for row in rows] == [ROW] * 5
    assert "W\\u00f6rd" in out.read_text(encoding="ascii")
    for row, question in zip(rows, rows_of(questions), strict=True):
        prompt = f"{SYSTEM}<image>\n{question['text']} ASSISTANT:"
        image = commands.golden / "images" / question["image"]
        assert row["text"] == generate_alone(tiny_model(commands.golden), prompt, image, max_new_tokens=6)
        assert (row["question_id"], row["prompt"]) == (question["question_id"], question["text"])
        assert (row["model_id"], row["metadata"]) == ("tiny-pretrain", {})
    assert len({row["answer_id"] for row in rows}) == 5
    assert {len(row["answer_id"]) for row in rows} == {22}


def test_a_rerun_asks_only_what_is_missing(commands: Commands, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, commands.golden)
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--max_new_tokens",
        "3",
    )
    for index in ("1", "0"):
        part = tmp_path / "out" / f"2_{index}.jsonl"
        chunk = ("--num-chunks", "2", "--chunk-idx", index, "--answers-file", part)
        assert commands.answer("model_vqa_loader", *flags, *chunk) == 0
    parts = rows_of(tmp_path / "out/2_0.jsonl") + rows_of(tmp_path / "out/2_1.jsonl")
    whole = ("--num-chunks", "1", "--chunk-idx", "0", "--answers-file", tmp_path / "out/1_0.jsonl")
    assert commands.answer("model_vqa_loader", *flags, *whole) == 0
    assert commands.loads == 2
    assert rows_of(tmp_path / "out/1_0.jsonl") == parts
    assert len(parts) == 5


def test_answers_of_other_settings_are_refused_and_kept(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write_questions(tmp_path, commands.golden)
    out = tmp_path / "answers.jsonl"
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--answers-file",
        out,
    )
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2") == 0
    before = out.read_text()
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "3") == 2
    assert "another run: max_new_tokens was 2, is 3" in capsys.readouterr().err
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2", "--no-exact") == 2
    assert "another run: exact was True, is False" in capsys.readouterr().err
    assert commands.answer("model_vqa_loader", *flags, "--model-path", commands.golden / "viii_lora") == 2
    assert "another run: model was 'tiny-pretrain', is 'viii_lora'; weights was" in capsys.readouterr().err
    assert out.read_text() == before
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "3", "--overwrite") == 0
    assert out.read_text() != before


def test_answers_of_an_unchanged_model_are_not_used_for_a_changed_one(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, out = write_questions(tmp_path, commands.golden), tmp_path / "answers.jsonl"
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--answers-file",
        out,
    )
    assert commands.answer("model_vqa_loader", *flags) == 0
    encode = LlavaMetaForCausalLM.encode_images
    monkeypatch.setattr(LlavaMetaForCausalLM, "encode_images", lambda model, images: -encode(model, images))
    assert commands.answer("model_vqa_loader", *flags) == 2
    assert "changed was None, is \"the model's encode_images is replaced" in capsys.readouterr().err
    before = rows_of(out)
    assert commands.answer("model_vqa_loader", *flags, "--overwrite") == 0
    assert [row["text"] for row in rows_of(out)] != [row["text"] for row in before]


def test_answers_about_images_of_another_folder_are_refused_and_moved_data_is_not(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write_questions(tmp_path, commands.golden)
    for folder in ("a/val", "b/val", "a/test"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(commands.golden / "images/a_640x480.png", tmp_path / folder)
    flags = ("--question-file", questions, "--answers-file", tmp_path / "answers.jsonl")
    codes = [
        commands.answer("model_vqa_loader", *flags, "--image-folder", tmp_path / folder)
        for folder in ("a/val", "b/val", "a/test")
    ]
    assert codes == [0, 0, 2]
    assert "another run: questions was" in capsys.readouterr().err
    assert commands.loads == 1


def test_answers_about_an_image_that_was_replaced_are_not_used_again(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write_questions(tmp_path, commands.golden)
    image = tmp_path / "a_640x480.png"
    content = (commands.golden / "images/a_640x480.png").read_bytes()
    image.write_bytes(content)
    times = image.stat()
    out = tmp_path / "answers.jsonl"
    flags = ("--question-file", questions, "--image-folder", tmp_path, "--answers-file", out)
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2") == 0
    before = out.read_text()
    image.write_bytes(content[:-1] + b"x")
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2") == 2
    assert "5 answers are about other images" in capsys.readouterr().err
    assert out.read_text() == before
    image.unlink()
    image.write_bytes(content)
    assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2") == 0
    assert commands.loads == 1


def test_an_answers_file_does_not_replace_its_questions(commands: Commands, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, commands.golden)
    before = questions.read_text()
    (tmp_path / "link").symlink_to(tmp_path)
    out = tmp_path / "link/../link" / questions.name
    flags = ("--question-file", questions, "--image-folder", commands.golden / "images")
    assert commands.answer("model_vqa_loader", *flags, "--answers-file", out) == 2
    assert questions.read_text() == before


def test_more_chunks_than_questions_leave_empty_files(commands: Commands, tmp_path: Path) -> None:
    questions = write_questions(tmp_path, commands.golden)
    part = tmp_path / "8_7.jsonl"
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--answers-file",
        part,
    )
    assert commands.answer("model_vqa", *flags, "--num-chunks", "8", "--chunk-idx", "7") == 0
    assert part.read_text() == ""
    assert commands.loads == 0


def test_a_launchers_processes_fill_one_file(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write_questions(tmp_path, commands.golden)
    out = tmp_path / "answers.jsonl"
    flags = (
        "--question-file",
        questions,
        "--image-folder",
        commands.golden / "images",
        "--answers-file",
        out,
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert not out.exists()
        assert commands.answer("model_vqa_loader", *flags, "--max_new_tokens", "2") == 0
    assert len(rows_of(out)) == 5


def tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(rows[0])
    lines = ["\t".join(columns), *("\t".join(str(row[column]) for column in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def mmbench_rows(image: Path) -> list[dict[str, Any]]:
    encoded = base64.b64encode(image.read_bytes()).decode()
    first = {"index": 7, "question": "Which?", "hint": "A hint.", "A": "ant", "B": "bee", "C": "cow", "D": ""}
    second = {"index": 1000007, "question": "哪个?", "hint": "", "A": "NA", "B": "b", "C": "c", "D": "d"}
    return [{**row, "answer": "A", "category": "x", "image": encoded} for row in (first, second)]


@pytest.mark.parametrize(
    ("flags", "suffix"),
    [
        ([], ""),
        (["--single-pred-prompt"], f"\n{SUFFIX}"),
        (["--single-pred-prompt", "--lang", "cn"], "\n请直接回答选项字母。"),
    ],
)
def test_mmbench_asks_with_hint_and_options(
    commands: Commands, tmp_path: Path, flags: list[str], suffix: str
) -> None:
    image = commands.golden / "images/a_640x480.png"
    questions = tsv(tmp_path / "q.tsv", mmbench_rows(image))
    out = tmp_path / "answers.jsonl"
    files = ("--question-file", questions, "--answers-file", out)
    assert commands.answer("model_vqa_mmbench", *files, *flags) == 0
    assert commands.limits == [1024]
    first, second = rows_of(out)
    assert list(first) == [*ROW[:1], "round_id", *ROW[1:3], "options", "option_char", *ROW[3:]]
    assert first["prompt"] == "A hint.\nWhich?\nA. ant\nB. bee\nC. cow"
    assert second["prompt"] == "哪个?\nA. NA\nB. b\nC. c\nD. d"
    assert (first["question_id"], first["round_id"], second["question_id"]) == (7, 0, 1000007)
    assert (first["options"], first["option_char"]) == (["ant", "bee", "cow"], ["A", "B", "C"])
    prompt = f"{SYSTEM}<image>\n{first['prompt']}{suffix} ASSISTANT:"
    assert first["text"] == generate_alone(tiny_model(commands.golden), prompt, image, max_new_tokens=8)


def test_all_rounds_move_options_under_fixed_letters(commands: Commands, tmp_path: Path) -> None:
    rows = mmbench_rows(commands.golden / "images/d_56x56.png")[:1]
    out = tmp_path / "answers.jsonl"
    flags = ("--question-file", tsv(tmp_path / "q.tsv", rows), "--answers-file", out, "--all-rounds")
    assert commands.answer("model_vqa_mmbench", *flags) == 0
    found = [(row["round_id"], row["options"], row["option_char"]) for row in rows_of(out)]
    assert found == [
        (0, ["ant", "bee", "cow"], ["A", "B", "C"]),
        (1, ["bee", "cow", "ant"], ["B", "C", "A"]),
        (2, ["cow", "ant", "bee"], ["C", "A", "B"]),
    ]
    assert rows_of(out)[1]["prompt"].endswith("Which?\nA. bee\nB. cow\nC. ant")


def test_science_logs_the_image_token_and_asks_text_alone_too(commands: Commands, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhy?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
    rows = [
        {"id": "11", "image": "a_640x480.png", "conversations": said},
        {"id": "12", "conversations": [{"from": "human", "value": "Why not?"}]},
    ]
    write_json(tmp_path / "q.json", rows)
    out = tmp_path / "answers.jsonl"
    flags = ("--question-file", tmp_path / "q.json", "--image-folder", commands.golden / "images")
    assert commands.answer("model_vqa_science", *flags, "--answers-file", out, "--single-pred-prompt") == 0
    first, second = rows_of(out)
    assert list(first) == ROW
    assert first["prompt"] == f"<image>\nWhy?\nA. x\nB. y\n{SUFFIX}"
    assert second["prompt"] == f"Why not?\n{SUFFIX}"
    loaded = tiny_model(commands.golden)
    image = commands.golden / "images/a_640x480.png"
    for row, shown in ((first, image), (second, None)):
        prompt = f"{SYSTEM}{row['prompt']} ASSISTANT:"
        assert row["text"] == generate_alone(loaded, prompt, shown, max_new_tokens=8)
    assert commands.limits == [1024]


BAD_QUESTIONS = [
    (
        '{"question_id": 1, "image": "a_640x480.png", "text": " "}',
        r"question 1 \(question_id 1\): the question is empty",
    ),
    ('{"question_id": 1, "text": "Why?"}', r"question 1 \(question_id 1\): image is None"),
    ('{"question_id": 1, "image": "../a.png", "text": "Why?"}', r"question_id 1\): image is '../a.png'"),
    ('{"question_id": 1, "image": "/a.png", "text": "Why?"}', r"question_id 1\): image is '/a.png'"),
    ('{"question_id": 1, "image": "a\\u0000", "text": "Why?"}', r"question_id 1\): image is"),
    (
        f'{{"question_id": 1, "image": "{"a" * 5000}", "text": "Why?"}}',
        r"question_id 1\): .*aaa: cannot be read as an image",
    ),
    (
        '{"question_id": 1, "image": "gone.png", "text": "Why?"}',
        r"question 1 \(question_id 1\): .*gone.png: no such",
    ),
    ('{"question_id": 1, "image": "a.png", "text": "Wh', r"questions.jsonl:1: not valid JSON"),
    ('{"question_id": 1, "image": "a.png", "text": 5}', r"question 1 \(question_id 1\)?.*text"),
    ('{"question_id": 1, "image": "a.png"}', r"questions.jsonl:1: .*text"),
    ("", "questions.jsonl: holds no question"),
    (
        r'{"question_id": 1, "image": "a_640x480.png", "text": "a \ud83d b"}',
        r"questions\.jsonl:1: .* holds half a character",
    ),
]


BAD_QUESTIONS += [
    (f'{{"question_id": {value}, "image": "a_640x480.png", "text": "?"}}', r"questions\.jsonl:1: .*id is ")
    for value in ("null", "[1]", '{"a": 1}', "true", "1.5", '""')
]


@pytest.mark.parametrize(("line", "complaint"), BAD_QUESTIONS)
def test_bad_questions_are_named_and_nothing_is_loaded(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    flags = ("--question-file", tmp_path / "questions.jsonl", "--image-folder", commands.golden / "images")
    assert commands.answer("model_vqa_loader", *flags, "--answers-file", tmp_path / "a.jsonl") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(complaint, error), error
    assert commands.loads == 0


def test_a_broken_image_keeps_the_answers_before_it(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = commands.golden / "images"
    (tmp_path / "good.png").write_bytes((images / "a_640x480.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((images / "a_640x480.png").read_bytes()[:900])
    rows = [
        {"question_id": n, "image": "bad.png" if n == 30 else "good.png", "text": f"{n}?"} for n in range(31)
    ]
    write_jsonl(tmp_path / "q.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    flags = ("--question-file", tmp_path / "q.jsonl", "--image-folder", tmp_path, "--answers-file", out)
    settings = ("--max_new_tokens", "1", "--batch-size", "1")
    assert commands.answer("model_vqa_loader", *flags, *settings) == 2
    assert "question 31 (question_id 30): " in (error := capsys.readouterr().err)
    assert "bad.png: cannot be read as an image" in error
    assert not out.exists()
    kept = len(rows_of(tmp_path / "answers.journal/1_0.jsonl"))
    assert kept >= 20
    (tmp_path / "bad.png").write_bytes((images / "a_640x480.png").read_bytes())
    assert commands.answer("model_vqa_loader", *flags, *settings) == 0
    assert f"{kept} have their answer from before" in capsys.readouterr().err
    assert len(rows_of(out)) == 31


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"image": "bm8gaW1hZ2U="},
            r"question 1 \(question_id 7\): base64 text .* cannot be read as",
        ),
        ({"image": ""}, r"q\.tsv: question 7: has no image"),
        ({"question": " "}, r"q\.tsv: question 7: has no question"),
        ({"A": ""}, "question 7: has no option A"),
    ],
)
def test_bad_mmbench_rows_are_named(
    commands: Commands,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    complaint: str,
) -> None:
    row = {**mmbench_rows(commands.golden / "images/d_56x56.png")[0], **change}
    questions = tsv(tmp_path / "q.tsv", [row])
    flags = ("--question-file", questions, "--answers-file", tmp_path / "a.jsonl")
    assert commands.answer("model_vqa_mmbench", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(complaint, error), error


def test_a_tsv_without_its_columns_is_named(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tsv(tmp_path / "q.tsv", [{"index": 1, "query": "?"}])
    assert commands.answer("model_vqa_mmbench", "--question-file", questions) == 2
    assert "q.tsv:1: no column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "q.tsv: "),
        (b'index\tquestion\tA\tB\n1\t"q\tx\ty\n', "q.tsv:2: "),
        (b"index\tquestion\tA\tB\n1\tq\xe9\tx\ty\n", "q.tsv:2: "),
    ],
)
def test_a_tsv_that_is_none_is_named(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, place: str
) -> None:
    (tmp_path / "q.tsv").write_bytes(content)
    assert commands.answer("model_vqa_mmbench", "--question-file", tmp_path / "q.tsv") == 2
    assert place in capsys.readouterr().err


@pytest.mark.parametrize("image", [5, "", []])
def test_a_scienceqa_image_that_is_no_path_is_named(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str], image: object
) -> None:
    row = {"id": "1", "image": image, "conversations": [{"from": "human", "value": "Why?"}]}
    write_json(tmp_path / "q.json", [row])
    assert commands.answer("model_vqa_science", "--question-file", tmp_path / "q.json") == 2
    assert f"q.json: element 0: image is {image!r}, wanted a path" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["null", "[]", "{}", "true", "1.5"])
def test_a_scienceqa_id_that_is_none_is_named(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    row = f'{{"id": {value}, "conversations": [{{"from": "human", "value": "Why?"}}]}}'
    (tmp_path / "q.json").write_text(f"[{row}]")
    assert commands.answer("model_vqa_science", "--question-file", tmp_path / "q.json") == 2
    assert "q.json: element 0: the id is " in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [
        f"eval.{name}"
        for name in ("model_vqa", "model_vqa_loader", "model_vqa_mmbench", "model_vqa_science", "run_llava")
    ]
    + ["serve.cli"],
)
def test_the_model_must_be_named(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(f"llava.{module}").main()
    assert exit.value.code == 2
    assert "--model-path" in capsys.readouterr().err


def test_run_llava_prints_the_answer_alone(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    image = commands.golden / "images/a_640x480.png"
    flags = ("--image-file", image, "--query", "What is this?", "--temperature", "0", "--max_new_tokens", "8")
    assert commands.run("eval.run_llava", *flags, "--conv-mode", "vicuna_v1") == 0
    prompt = f"{SYSTEM}<image>\nWhat is this? ASSISTANT:"
    said = generate_alone(tiny_model(commands.golden), prompt, image, max_new_tokens=8)
    assert capsys.readouterr().out == said + "\n"


def test_eval_model_takes_the_originals_attributes(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava.eval.run_llava import eval_model

    images = [str(commands.golden / "images" / name) for name in ("a_640x480.png", "c_100x37.png")]
    query = "Is <image-placeholder> like <image-placeholder>?"
    wanted = {
        "conv_mode": None,
        "sep": ";",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 4,
    }
    path = str(commands.golden / "weights/tiny-pretrain")
    eval_model(
        SimpleNamespace(
            model_path=path,
            model_base=None,
            model_name="x",
            query=query,
            image_file=";".join(images),
            **wanted,
        )
    )
    assert capsys.readouterr().out.strip()


def test_a_chat_remembers_what_was_said(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["What is this?", "And why?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    image = commands.golden / "images/b_333x500.png"
    flags = ("--image-file", image, "--temperature", "0", "--max-new-tokens", "6", "--conv-mode", "vicuna_v1")
    assert commands.run("serve.cli", *flags, "--debug") == 0
    loaded = tiny_model(commands.golden)
    first = f"{SYSTEM}<image>\nWhat is this? ASSISTANT:"
    said = generate_alone(loaded, first, image, max_new_tokens=6)
    second = f"{first} {said}</s>USER: And why? ASSISTANT:"
    out = capsys.readouterr().out
    assert str({"prompt": first, "outputs": said}) in out
    assert str({"prompt": second, "outputs": generate_alone(loaded, second, image, max_new_tokens=6)}) in out
    assert out.endswith("exit...\n")


class Interrupting(io.StringIO):
    """A terminal at which somebody presses Ctrl-C at the first words of the second answer."""

    answers = 0

    def write(self, text: str) -> int:
        self.answers += text == "ASSISTANT: "
        if self.answers == 2 and text != "ASSISTANT: ":
            self.answers += 1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)

    def isatty(self) -> bool:
        return True


def test_a_chat_obeys_commands_and_ctrl_c(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    first, second = (commands.golden / "images" / name for name in ("b_333x500.png", "d_56x56.png"))
    talk = [
        "What is this?",
        f"/image {second}",
        "Like <image> this?",
        f"/image {tmp_path}/gone.png",
        f"/image {tmp_path}/broken.png",
        "What?",
        "/restart",
        "/reset",
        f"/image '{second}'",
        "So?",
        "",
    ]
    monkeypatch.setattr("builtins.input", lambda prompt: talk.pop(0))
    monkeypatch.setattr("sys.stdin", Interrupting())
    screen = Interrupting()
    monkeypatch.setattr("sys.stdout", screen)
    flags = ("--image-file", first, "--temperature", "0")
    assert commands.run("serve.cli", *flags, "--conv-mode", "vicuna_v1", "--debug") == 0
    shown = screen.getvalue()
    rows = [ast.literal_eval(line) for line in shown.splitlines() if line.startswith("{")]
    model, opening = tiny_model(commands.golden), f"{SYSTEM}<image>\nWhat is this? ASSISTANT:"
    said = generate_alone(model, opening, first, max_new_tokens=8)
    assert rows[0] == {"prompt": opening, "outputs": said}
    assert rows[1]["prompt"] == f"{opening} {said}</s>USER: <image>\nLike  this? ASSISTANT:"
    assert re.fullmatch(r"\S+", rows[1]["outputs"])  # left alone, it says four words
    assert shown.count(" [stopped]\n") == 1
    assert rows[2]["prompt"] == f"{SYSTEM}<image>\nSo? ASSISTANT:"
    assert shown.count("error: ") == 3
    assert "broken.png: cannot be read as an image" in shown


def test_a_chat_that_nobody_watches_ends_at_an_error(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "/image gone.png")
    assert commands.run("serve.cli") == 2
    assert "gone.png: no such image file" in capsys.readouterr().err


def test_values_out_of_range_are_refused(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, complaint in (
        (["--num-chunks", "2", "--chunk-idx", "2"], "--chunk-idx 2 of --num-chunks 2"),
        (["--top_p", "0"], "--top_p 0.0 is out of range"),
        (["--batch-size", "0"], "--batch-size 0: want at least 1"),
        (["--conv-mode", "v9"], "'v9': no such template"),
        (["--load-8bit", "--load-4bit"], "exclude each other"),
    ):
        questions = write_questions(tmp_path, commands.golden)
        where = ("--question-file", questions, "--image-folder", commands.golden / "images")
        assert commands.answer("model_vqa_loader", *where, *flags) == 2
        assert complaint in capsys.readouterr().err


def test_ids_keep_their_type(commands: Commands, tmp_path: Path) -> None:
    rows = [{"question_id": value, "image": "d_56x56.png", "text": "?"} for value in (5, "5", "v1738")]
    write_jsonl(tmp_path / "q.jsonl", rows)
    out = tmp_path / "a.jsonl"
    flags = ("--question-file", tmp_path / "q.jsonl", "--image-folder", commands.golden / "images")
    assert commands.answer("model_vqa_loader", *flags, "--answers-file", out, "--max_new_tokens", "1") == 0
    assert [json.loads(line)["question_id"] for line in out.read_text().splitlines()] == [5, "5", "v1738"]
    assert read_json(tmp_path / "a.journal/run.json")["about"]["model"] == "tiny-pretrain"


def test_an_image_may_come_from_the_web(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = commands.golden / "images/a_640x480.png"
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(image.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    flags = ("--query", "What?", "--temperature", "0", "--max_new_tokens", "4")
    try:
        said = []
        for name in (image, f"{address}/{image.name}"):
            assert commands.run("eval.run_llava", *flags, "--image-file", name) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]
        assert commands.run("eval.run_llava", *flags, "--image-file", f"{address}/gone.png") == 2
        assert "gone.png: cannot be downloaded (404" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()
