"""A training file is read once; its index is correct, shared, and rebuilt when stale or damaged."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.conversation import SeparatorStyle
from llava.data import index
from llava.data.index import SAMPLES, Samples, open_index
from llava.files import read_json
from llava.samples import SEVERAL_TOKENS, group_lengths, has_unused_image_token, read_samples
from support.errors import raises_code
from support.full_disk import files_of_at_most


def record(place: int, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nWhat is {place}?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": f"s{place}", "image": f"{place}.jpg", "conversations": turns, **changes}


def written(path: Path, rows: list[Any]) -> Path:
    text = "\n\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files indexed so far, with their indexes beside them instead of in the test run's cache."""
    monkeypatch.delenv("LLAVA_CACHE")
    seen: list[Path] = []
    build = index._build
    monkeypatch.setattr(index, "_build", lambda path, folder: (seen.append(path), build(path, folder)))
    return seen


def test_indexed_samples_equal_those_read_from_the_file(realdata: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line)
        for line in (realdata / "mix665k/llava_v1_5_mix1k.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    feed = [{"from": "gpt", "value": "I saw <image>, it said."}]
    rows += [{"id": given, "conversations": feed, "type": "feed"} for given in (7, "7", 7.0, None)]
    for name in ("a.json", "a.jsonl"):
        path = written(tmp_path / name, rows)
        samples, made = list(read_samples(path)), open_index(path)
        assert list(made) == samples
        assert [type(sample.id) for sample in made][-4:] == [int, str, int, str]
        assert list(zip(made.lengths, made.modality_lengths, strict=True)) == list(
            map(group_lengths, samples)
        )
        assert made.unused_image_token.tolist() == [*map(has_unused_image_token, samples)]
        assert made.with_image.tolist() == [sample.image is not None for sample in samples]
    assert made.location(1001) == f"{path}:2003 (id '7')"


@pytest.mark.parametrize(("size", "batches"), [(1 << 27, 3), (60, 4)])
def test_batches_of_rows_are_one_table(
    size: int, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_BATCH", 4)
    monkeypatch.setattr(index, "_BATCH_CHARACTERS", size)
    made = open_index(written(tmp_path / "a.json", [record(place) for place in range(10)]))
    assert made.table["texts"].num_chunks == batches
    assert [sample.id for sample in made] == [f"s{place}" for place in range(10)]
    names = made.images(made.bad_rows[:0])
    assert len(names) == 0
    assert [sample.id for sample in Samples(made, made.lengths.argsort()[:3])] == ["s0", "s1", "s2"]


def test_bad_records_are_indexed_with_their_problem(tmp_path: Path) -> None:
    twice = record(1)["conversations"] * 2
    rows = [record(0), [], record(2, conversations=twice), record(3, id=None, conversations=[]), record(4)]
    made = open_index(written(tmp_path / "a.json", rows))
    assert made.bad_rows.tolist() == [1, 2, 3]
    assert [made.problem_kind(row) for row in (1, 2, 3)] == ["not a record", SEVERAL_TOKENS, "no turns"]
    assert made.problem(2).startswith(f"{tmp_path}/a.json: record 2 (id 's2'): ")
    assert made[2].id == "s2"
    with raises_code("no-turns") as error:
        made[3]
    assert "a.json: record 3: " in str(error.value)
    assert made.unfit_rows(SeparatorStyle.PLAIN).tolist() == []
    assert made.unfit_rows(SeparatorStyle.TWO).tolist() == []


def test_the_index_is_built_once_beside_the_file(tmp_path: Path, builds: list[Path]) -> None:
    path = written(tmp_path / "a.json", [record(0)])
    assert open_index(path)[0] == open_index(path)[0]
    assert builds == [path]
    assert (tmp_path / "a.json.index" / SAMPLES).is_file()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_index_is_rebuilt(
    tmp_path: Path, builds: list[Path], damage: Callable[[Path], None]
) -> None:
    path = written(tmp_path / "a.json", [record(place) for place in range(50)])
    wanted = list(open_index(path))
    damage(tmp_path / "a.json.index" / SAMPLES)
    assert list(open_index(path)) == wanted
    assert builds == [path, path]


def test_a_stale_index_is_rebuilt(tmp_path: Path, builds: list[Path]) -> None:
    path = written(tmp_path / "a.json", [record(0)])
    open_index(path)
    written(path, [record(1)])  # of the same size
    assert open_index(path)[0].id == "s1"
    (tmp_path / "a.json.index" / "stamp.json").write_text('{"format": 0}')
    assert open_index(path)[0].id == "s1"
    assert len(builds) == 3


def test_a_full_disk_names_the_index(tmp_path: Path, builds: list[Path]) -> None:
    path = written(tmp_path / "a.json", [record(place) for place in range(100)])
    with files_of_at_most(4096), pytest.raises(OSError, match="too large") as error:
        open_index(path)
    assert error.value.filename == str(tmp_path / "a.json.index" / SAMPLES)
    assert len(open_index(path)) == 100
    assert builds == [path, path]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("value", "code"),
    [
        pytest.param("[" * 100_000 + "]" * 100_000, "not-json", id="deep"),
        pytest.param("9" * 5000, "not-json", id="integer"),
        (r'"a\u0000.jpg"', None),
        (r'"\ud83d"', None),
        ('"/a.jpg"', None),
        ('"../a.jpg"', None),
        pytest.param("9" * 4000, None, id="a number"),
        pytest.param("[" * 500 + "]" * 500, None, id="nested"),
    ],
)
def test_odd_values_are_named_with_file_and_record(
    value: str, code: str | None, name: str, tmp_path: Path, builds: list[Path]
) -> None:
    path = tmp_path / name
    rows = [json.dumps(record(0)), json.dumps(record(1)).replace('"1.jpg"', value)]
    path.write_text("\n".join(rows) if path.suffix == ".jsonl" else f"[{', '.join(rows)}]")
    if code:
        with raises_code(code) as error:
            open_index(path)
        message = str(error.value)
        assert len(message) < 400 + len(str(path))
    else:
        made = open_index(path)
        assert [made.problem_kind(row) for row in made.bad_rows] == ["bad image name"]
        message = made.problem(1)
    at_record = [f"{path}: record 1", f"{path}:1: not valid JSON after 1 elements"]
    places = {".jsonl": [f"{path}:2"], ".json": at_record}
    assert any(message.startswith(place) for place in places[path.suffix])
    assert "\n" not in message


def test_a_broken_file_leaves_no_index(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record(0)])[:-1])
    with raises_code("not-json"):
        open_index(path)
    assert not list(tmp_path.rglob(SAMPLES))
    with raises_code("missing-file"):
        open_index(tmp_path / "none.json")


def test_the_index_of_a_read_only_folder_goes_to_the_cache(
    small_disk: Callable[[int], Path], tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(256)
    path = written(disk / "a.json", [record(0)])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_index(path).folder.parent == tmp_path / "home/.cache/llava"
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "mine"))
    assert open_index(path).folder.parent == tmp_path / "mine"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    monkeypatch.delenv("LLAVA_CACHE")
    # An existing index is used even if no folder can be written.
    assert open_index(path).folder.parent == tmp_path / "home/.cache/llava"
    assert builds == [path, path]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [record(place) for place in range(20_000)])
    code = (
        "import sys; from pathlib import Path; from llava.data import index; build = index._build\n"
        "def noted(*paths):\n    sys.stdout.write('built '); build(*paths)\n"
        "index._build = noted\nmade = index.open_index(Path(sys.argv[1]))\n"
        "sys.stdout.write(f'{len(made)} {made[19_999].id}')"
    )
    command = [sys.executable, "-c", code, str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in started]
    assert sorted(outputs) == ["20000 s19999", "built 20000 s19999"]


def test_a_pickled_index_is_two_paths(tmp_path: Path) -> None:
    made = open_index(written(tmp_path / "a.json", [record(place) for place in range(5000)]))
    pickled = pickle.dumps(made)
    assert len(pickled) < 2000
    assert pickle.loads(pickled)[4999] == made[4999]
    assert read_json(made.folder / "stamp.json")["format"] == index.FORMAT
