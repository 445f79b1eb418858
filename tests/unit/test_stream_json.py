"""Streaming a JSON array gives the values of `json.load` wherever the window ends; errors name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava import files
from support.errors import raises_code

GOOD = [
    "[]",
    " [ ] \n",
    r'["\ud800", "\ud83d\ude00", "\u0000", "a\/b"]',
    "[12345678901234567890123, 1.0, 1e5, 0.1, -0, 1E2, 1.5e300, -12345]",
    '[true, false,null ,[1,[2]],{"b": {"a":[]}, "a": ""}]\n',
    '[{"a":1,"b":{"a":2}}, "日本語 ❤️ \U0001f600"]',
    "\ufeff[1]",
]
BAD = {
    "": "file.json:1:",
    '{"a":1}': "'{'",
    "[1,2": "after 2 elements",
    "[1,": "after 1 elements",
    '["abc': "Unterminated string",
    "[1,2] trailing": "'t'",
    "[1 2]": "'2'",
    "[1,]": "Expecting value",
    "[" + "9" * 5000 + "]": "digits",
    "[" + "[" * 200_000: "nested",
    "[\n1,\n{},\n{nonsense}]": "file.json:4: not valid JSON after 2 elements",
}


@pytest.fixture(params=[1, 2, 3, 7, 64, 1 << 20])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(files._JsonReader, "_CHARACTERS", request.param)
    return int(request.param)


@pytest.mark.parametrize("text", GOOD)
def test_the_stream_gives_what_json_load_gives(text: str, window: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    assert repr(list(files.stream_json_array(path))) == repr(json.loads(text.removeprefix("\ufeff")))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a":1,"a":2}]', "file.json:1:"),
        ('[1,\n{"b":\n[{"a": "\\" }{",\n"\\u0061":2}]}, 3]', "file.json:4:"),
        ('[{"x": {"a": {}, "b": [{"a":1}]},\n "x":2}', "file.json:2:"),
    ],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(
    text: str, place: str, window: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with raises_code("repeated-key") as error:
        list(files.stream_json_array(path))
    assert place in str(error.value)
    assert f"{'x' if 'x' in text else 'a'!r} comes twice" in str(error.value)


@pytest.mark.parametrize("text", list(BAD))
def test_a_broken_array_is_refused_with_its_place(text: str, window: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with raises_code("not-json" if text.startswith("[") else "not-an-array") as error:
        list(files.stream_json_array(path))
    assert BAD[text] in str(error.value)


def test_bytes_that_are_not_utf8_are_refused(window: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'["\xff"]')
    with raises_code("not-utf8"):
        list(files.stream_json_array(path))


def test_a_broken_file_is_not_read_to_its_end_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("[truX, " + "1," * 4_000_000 + "1]", encoding="utf-8")
    text = files._JsonReader(path, path.open(encoding="utf-8"))
    text.next_character()
    text.position += 1
    with raises_code("not-json") as error:
        text.next_value()
    assert "file.json:1:" in str(error.value)
    assert len(text._window) <= files._JsonReader._CHARACTERS


COCO = '{"info": {"a": [1]}, "images": [{"id": 1}, {"id": 2}], "x": "]}", "annotations": [] , "n": 1.5}\n'


def test_the_arrays_of_an_object_are_streamed_in_its_order(window: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(COCO, encoding="utf-8")
    found = list(files.stream_json_lists(path, ("annotations", "images")))
    assert found == [("images", {"id": 1}), ("images", {"id": 2})]
    assert list(files.stream_json_lists(path, ())) == []
    path.write_text("{}", encoding="utf-8")
    assert list(files.stream_json_lists(path, ("images",))) == []


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("[]", "not-an-object", ":1:"),
        ('{"a": [1],\n"a": [2]}', "repeated-key", ":2:"),
        ('{"a": [1,\n{"b": 1, "b": 2}]}', "repeated-key", ":2:"),
        ('{"a":\n{}}', "not-an-array", ":2:"),
        ('{"a": [1, 2', "not-json", "cut short"),
        ('{"a": [1] "b": 2}', "not-json", "wanted ','"),
        ('{"a" [1]}', "not-json", "':'"),
        ("{3: [1]}", "not-json", "3"),
        ('{"a": []} {}', "not-json", "after the end"),
    ],
)
def test_a_broken_object_of_arrays_is_refused(
    text: str, code: str, place: str, window: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with raises_code(code) as error:
        list(files.stream_json_lists(path, ("a",)))
    assert place in str(error.value)
