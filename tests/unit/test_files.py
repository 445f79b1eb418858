"""Files: errors name file and line, arrays are streamed, writes are atomic."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.files import (
    atomic_folder,
    atomic_write,
    read_json,
    read_jsonl,
    require_distinct,
    stream_json_array,
    write_json,
    write_jsonl,
)
from support.errors import raises_code
from support.full_disk import files_of_at_most


def test_json_survives_the_round_trip(tmp_path: Path) -> None:
    value = {"text": "图中 😀 \u2028", "n": 7, "x": 0.5, "none": None}
    write_json(tmp_path / "deep" / "a.json", value)
    assert read_json(tmp_path / "deep" / "a.json") == value


def test_answer_rows_are_ascii_like_the_originals(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "é"}])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"text": "\\u00e9"}\n'
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"text": "é"})]


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        ('{"a": 1,\n "b" 2}', "not-json", "bad.json:2:"),
        ("", "not-json", "bad.json:1:"),
        (b"\xff\xfe", "not-utf8", "bad.json:"),
        ('{"a": 1,\n "b": {"c": 2,\n "c": 3}}', "repeated-key", "bad.json:3: the key 'c'"),
        ('{"a":\n' + "9" * 5000 + "}", "not-json", "bad.json:2:"),
        ("[\n" + "[" * 200_000, "not-json", "bad.json:2:"),
        ('{"a":\n"b\0"}', "not-json", "bad.json:2:"),
        (b'{"a":\n"\xff"}', "not-utf8", "bad.json:2:"),
    ],
)
def test_errors_in_a_json_file_name_the_line(
    tmp_path: Path, content: str | bytes, code: str, place: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with raises_code(code) as error:
        read_json(path)
    assert place in str(error.value)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"a": 1', "not-json"),
        ("[1]", "not-an-object"),
        ('{"id": 1, "id": 1}', "repeated-key"),
        ('{"a": [{"é": 1, "\\u00e9": 1}]}', "repeated-key"),
        ('{"a": ' + "9" * 5000 + "}", "not-json"),
        ('{"a": ' + "[" * 200_000, "not-json"),
        ('{"a": "\0"}', "not-json"),
        ('\0{"a": 1}', "not-json"),
        ('{"a": "\udcff"}', "not-utf8"),
    ],
)
def test_errors_in_a_jsonl_file_name_the_line(tmp_path: Path, line: str, code: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n' + line + "\n", encoding="utf-8", errors="surrogateescape")
    with raises_code(code) as error:
        list(read_jsonl(path))
    assert "rows.jsonl:3:" in str(error.value)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("NaN", "not-json"),
        ("[-Infinity]", "not-json"),
        ('"a\\ud83d"', "lone-surrogate"),
        ('["\\ude00\\ud83d"]', "lone-surrogate"),
        ('{"\\uDE00": 1}', "lone-surrogate"),
    ],
)
def test_what_only_python_reads_is_refused_where_others_read_too(
    tmp_path: Path, value: str, code: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "NaN \\ud83d\\ude00 \\\\ud83d"}\n{"a": ' + value + "}\n")
    assert len(list(read_jsonl(path))) == 2
    with raises_code(code) as error:
        list(read_jsonl(path, strict=True))
    assert "rows.jsonl:2:" in str(error.value)
    path.write_text('[{"a": "NaN \\ud83d\\ude00 \\\\ud83d"},\n{"a": ' + value + "}]\n")
    assert len(read_json(path)) == 2
    with raises_code(code) as error:
        read_json(path, strict=True)
    assert "rows.jsonl:2:" in str(error.value)


@pytest.mark.parametrize("reader", [read_json, read_jsonl, stream_json_array])
def test_a_missing_file_is_named(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with raises_code("missing-file") as error:
        list(reader(tmp_path / "gone.json"))  # type: ignore[call-overload]
    assert "gone.json" in str(error.value)


def test_streaming_keeps_values_as_json_reads_them(tmp_path: Path) -> None:
    rows = [{"id": 1, "big": 2**60, "x": 1.5, "text": "a\u2028b \ud83d\ude00"}, "s", [1, None, True]]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert list(stream_json_array(path)) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"a": 1}', "not-an-array"),
        ("", "not-an-array"),
        ('[{"a": 1}, {"b"', "not-json"),
        ("[1] x", "not-json"),
    ],
)
def test_streaming_refuses_an_incomplete_array(tmp_path: Path, content: str, code: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8")
    with raises_code(code):
        list(stream_json_array(path))


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def interrupted() -> None:
        with atomic_write(path) as stream:
            stream.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_the_old_file(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(64) / "a.json"
    write_json(path, "old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(path, "x" * 100_000)
    assert caught.value.filename == str(path)
    assert read_json(path) == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_names_the_folder_that_was_asked_for(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()

    def fill(write: Callable[[Path], object]) -> None:
        with atomic_folder(folder) as staging:
            write(staging / "a.json")

    for write in (lambda path: path.write_text("x" * 9000), lambda path: write_json(path, "x" * 9000)):
        with files_of_at_most(4096), pytest.raises(OSError, match="too large") as caught:
            fill(write)
        assert caught.value.filename == str(folder)
    assert [*tmp_path.rglob("*")] == ([folder] if exists else [])


def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, named in {
        tmp_path / "folder": tmp_path / "folder",
        tmp_path / "file/a.json": tmp_path / "file",
        tmp_path / ("a" * 300): tmp_path / ("a" * 300),
    }.items():
        with pytest.raises(OSError, match=r"folder|exists|too long") as caught:
            write_json(path, 1)
        assert caught.value.filename == str(named)
    write_json(tmp_path / ("é" * 127), 1)  # 254 bytes, of 255 that a name may have
    assert len([*tmp_path.iterdir()]) == 3


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("", encoding="utf-8")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


WRITING = """
import sys
from pathlib import Path
from llava.files import atomic_folder, atomic_write
here = Path(sys.argv[1])
with atomic_write(here / "big.json") as stream, atomic_folder(here / "merged") as folder:
    (folder / "weights").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_was_writing_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".saving-checkpoint", ".big.json.swp", ".big.json.settings")]
    for path in mine:
        path.write_text("")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 4 + len(mine)
    writers[0].kill()
    writers[0].communicate()
    write_json(tmp_path / "other.json", 1)
    assert len(list(tmp_path.iterdir())) == 2 + 1 + len(mine)
    writers[1].communicate("go on")
    assert sorted(tmp_path.iterdir()) == sorted(
        [*mine, *(tmp_path / name for name in ("big.json", "merged", "other.json"))]
    )
    assert (tmp_path / "merged/weights").read_text() == "half"


def test_where_files_cannot_be_locked_they_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", no_locks)
    leftover = tmp_path / ".a.json.abcdefgh.saving"
    leftover.write_text("may be another's")
    write_json(tmp_path / "a.json", 1)
    with atomic_folder(tmp_path / "folder") as staging:
        (staging / "a").write_text("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [leftover.name, "a.json", "folder"]


def test_a_folder_is_no_place_for_a_file_and_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught, atomic_write(tmp_path):
        pytest.fail("the work has begun")
    assert caught.value.filename == str(tmp_path)


def test_outputs_that_are_inputs_or_other_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("")
    (tmp_path / "hard").hardlink_to(tmp_path / "in")
    (tmp_path / "soft").symlink_to(tmp_path / "in")
    for outputs, inputs in (
        (["in"], ["in"]),
        (["hard"], ["in"]),
        (["soft"], ["x", "in"]),
        (["a", "sub/../a"], []),
        (["in", "soft"], []),
    ):
        with raises_code("output-is-input"):
            require_distinct([tmp_path / name for name in outputs], [tmp_path / name for name in inputs])
    require_distinct([None, tmp_path / "a", None, tmp_path / "b"], [None, tmp_path / "in"])
