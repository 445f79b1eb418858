"""Mixing: the base comes through unchanged, clashes are refused, memory holds only digests; the commands."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.convert import ConversionSettings
from llava.data_engine.mix import Mixed, Replay, write_samples
from llava.data_engine.pipeline import convert_files, mix_files
from llava.data_engine.text import digest
from llava.errors import DataError, SettingsError
from llava.samples import read_samples
from llava.schema import Sample, Turn
from support.errors import raises_code

NASTY_BASE = r"""[
  {"id": 12345678901234567890123, "image": "gqa/images/17.jpg", "score": 0.1, "big": 1e300, "zero": -0.0,
   "conversations": [{"from": "human", "value": "<image>\nWhich side?"}, {"from": "gpt", "value": "Left"}]},
  {"conversations": [{"value": "half \ud83d, quote \" slash \/ tab \t nul \u0000 sep \u2028 \u00e9 é 日本",
   "from": "human"}, {"from": "gpt", "value": "\ud83d\ude00"}], "model": "", "id": "wgByO4Y_0", "int": 5},
  {"id": "a", "conversations": [], "nested": {"z": [null, true, {"a": {}}], "a": 2}},
  {"id": "a", "image": "vg/VG_100K/1.jpg", "conversations": [{"from": "gpt"}]}
]"""


def sample(identifier: str = "engine_da_0", image: str | None = "vg/VG_100K/1.jpg") -> Sample:
    question = "<image>\nWho?" if image else "Who?"
    return Sample(identifier, (Turn("human", question), Turn("gpt", "Me é")), image)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.json"
    path.write_text(NASTY_BASE, encoding="utf-8")
    return path


def test_the_base_comes_first_unchanged_and_in_order(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "mixed.json"
    mixed = write_samples(output, [sample(), sample("engine_da_1", image=None)], base=base)
    text = output.read_text(encoding="utf-8")
    rows = json.loads(text)
    # Compared as JSON with keys in order: 5 and 5.0, or a lost key order, would show.
    assert json.dumps(rows[:4]) == json.dumps(json.loads(NASTY_BASE))
    assert rows[5] == {
        "id": "engine_da_1",
        "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me é"}],
    }
    assert mixed == Mixed(4, 2, hashlib.sha256(output.read_bytes()).hexdigest(), of=4)
    lines = text.splitlines()
    assert '"value":"Me é"' in text
    assert text.count("\n") == len(rows) + 2
    assert lines[1].startswith('{"id":12345678901234567890123,"image":"gqa/images/17.jpg","score":0.1,')


def test_the_real_mix_comes_through_unchanged(realdata: Path, tmp_path: Path) -> None:
    base = realdata / "mix665k/llava_v1_5_mix1k.jsonl"
    mixed = write_samples(tmp_path / "mixed.json", [sample()], base=base)
    rows = json.loads((tmp_path / "mixed.json").read_text(encoding="utf-8"))
    assert (mixed.base, mixed.added, mixed.total, mixed.steps) == (1000, 1, 1001, 8)
    assert json.dumps(rows[:-1]) == json.dumps([json.loads(line) for line in base.open(encoding="utf-8")])


def test_steps_are_those_of_one_epoch_at_a_batch_of_128() -> None:
    assert Mixed(665_298, 0, "").steps == 5198
    assert Mixed(0, 128, "").steps == 1
    assert Mixed(128, 1, "").steps == 2


@pytest.mark.parametrize(
    ("added", "code", "facts"),
    [
        (sample("wgByO4Y_0"), "repeated-id", ["'wgByO4Y_0'", "base.json"]),
        (sample("a"), "repeated-id", ["'a'"]),
        (sample("12345678901234567890123"), "repeated-id", ["12345678901234567890123"]),
        (sample(image="VG_100K/2.jpg"), "image-folders-differ", [" VG_100K/", "base.json", " vg/VG_100K/"]),
        (sample(image="playground/data/gqa/images/1.jpg"), "image-folders-differ", [" gqa/images/"]),
    ],
)
def test_clashes_are_refused_and_nothing_is_written(
    base: Path, tmp_path: Path, added: Sample, code: str, facts: list[str]
) -> None:
    output = tmp_path / "out/mixed.json"
    output.parent.mkdir()
    output.write_text("older")
    with raises_code(code, DataError) as error:
        write_samples(output, [added], base=base)
    assert all(fact in str(error.value) for fact in facts)
    assert output.read_text() == "older"
    assert [path.name for path in output.parent.iterdir()] == ["mixed.json"]


def test_samples_of_any_origin_must_have_ids_of_their_own(base: Path, tmp_path: Path) -> None:
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    write_samples(files[0], [sample(), sample("5")])
    write_samples(files[1], [sample("engine_da_1"), sample("5")])
    with raises_code("repeated-id", DataError) as error:
        mix_files(base, files, tmp_path / "mixed.json")
    assert "'5'" in str(error.value)


def test_digests_tell_texts_apart_even_those_that_are_not_utf_8() -> None:
    texts = [*(f"id {number}" for number in range(20_000)), "half \ud83d", "half ?"]
    assert len({digest(text) for text in texts}) == len(texts)


def test_an_image_that_is_there_under_its_name_is_no_clash(base: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").touch()
    added = [sample(image="images/1.jpg")]
    with raises_code("image-folders-differ", DataError):
        write_samples(tmp_path / "mixed.json", added, base=base)
    assert write_samples(tmp_path / "mixed.json", added, base=base, image_root=tmp_path).added == 1


def test_other_folders_and_the_bases_own_images_are_no_clash(base: Path, tmp_path: Path) -> None:
    added = [sample("1", "vg/VG_100K/1.jpg"), sample("2", "vg/VG_100K_2/1.jpg"), sample("3", "mine/1.jpg")]
    assert write_samples(tmp_path / "mixed.json", added, base=base).added == 3


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        (NASTY_BASE[:-20], "not-json", "base.json:7"),
        ('[{"instruction": "?"}]', "not-training-data", "record 0"),
        ('{"a": 1}', "not-an-array", "base.json"),
    ],
)
def test_a_broken_base_is_refused(base: Path, tmp_path: Path, text: str, code: str, fact: str) -> None:
    base.write_text(text, encoding="utf-8")
    with raises_code(code, DataError) as error:
        write_samples(tmp_path / "mixed.json", [sample()], base=base)
    assert fact in str(error.value)
    assert not (tmp_path / "mixed.json").exists()


def test_inputs_are_never_overwritten(base: Path, tmp_path: Path) -> None:
    with raises_code("output-is-input", SettingsError):
        write_samples(base, [sample()], base=base)
    write_samples(tmp_path / "samples.json", [sample()])
    with raises_code("output-is-input", SettingsError):
        mix_files(base, [tmp_path / "samples.json"], tmp_path / "samples.json")
    assert base.read_text(encoding="utf-8") == NASTY_BASE


@pytest.mark.parametrize(
    "outputs",
    [
        {"output": "y.json", "problems": "y.json"},
        {"output": "y.json", "problems": "./y.json", "report": "r.json"},
        {"output": "y.json", "report": "y.json"},
        {"output": "y.json", "report": "p.jsonl", "problems": "p.jsonl"},
        {"output": "engine.json"},
        {"output": "y.json", "report": "engine.json"},
        {"output": "y.json", "problems": "base.json"},
    ],
)
def test_an_output_of_a_conversion_is_no_other_file_of_it(
    base: Path, tmp_path: Path, outputs: dict[str, str]
) -> None:
    engine = tmp_path / "engine.json"
    engine.write_text(json.dumps([long_record(1)]))
    before = engine.read_text()
    with raises_code("output-is-input", SettingsError):
        convert_files(
            ConversionSettings(engine=(engine,)),
            base=base,
            output=tmp_path / outputs["output"],
            report=tmp_path / outputs["report"] if "report" in outputs else None,
            problems=tmp_path / outputs["problems"] if "problems" in outputs else None,
        )
    assert (engine.read_text(), base.read_text(encoding="utf-8")) == (before, NASTY_BASE)
    assert not (tmp_path / "y.json").exists()


def test_a_full_disk_is_named_by_the_users_path(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    engine = tmp_path / "engine.json"
    engine.write_text(json.dumps([long_record(number) for number in range(400)]))
    disk = small_disk(64)
    with pytest.raises(OSError, match="No space left") as caught:
        convert_files(ConversionSettings(engine=(engine,)), disk / "y.json")
    assert caught.value.filename == str(disk / "y.json")
    assert list(disk.iterdir()) == []


# --- commands ---


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["llava engine", *map(str, arguments)])
    main()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    rows: list[Any] = [
        {
            "instruction": f"Where is thing {number}?",
            "answer": "On the left.",
            "options": ["left", "right"],
            "choice_answer": "A",
            "image": f"vg/VG_100K/{number}.jpg",
            "qtype": number % 9 + 1,
        }
        for number in range(20)
    ]
    path = tmp_path / "engine.json"
    path.write_text(json.dumps([*rows, 5]))
    return path


def test_one_step_and_two_steps_write_the_same_file(
    base: Path,
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(monkeypatch, "convert", "--engine", engine, "--output", tmp_path / "samples.json")
    assert "Scene Understanding" in capsys.readouterr().out
    samples = tmp_path / "samples.json"
    command(monkeypatch, "mix", "--base", base, "--samples", samples, "--output", tmp_path / "two.json")
    out = capsys.readouterr().out
    assert "samples: 4 of" in out
    assert "+ 60 new = 64" in out
    command(monkeypatch, "mix", "--base", base, "--engine", engine, "--output", tmp_path / "one.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    report = json.loads((tmp_path / "one.report.json").read_text())
    assert report["sha256"] == hashlib.sha256((tmp_path / "one.json").read_bytes()).hexdigest()
    assert (report["base"]["records"], report["added"], report["expected_steps"]) == (4, 60, 1)
    assert report["reasons"] == {"not_an_object": 1}
    assert len((tmp_path / "one.problems.jsonl").read_text().splitlines()) == 1


def test_all_flags_reach_the_conversion(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--modes", "da,mcp", "--qtypes", "1,2", "--limit", "4", "--seed", "7", "--group", "image"]
    flags += ["--check-images", "skip"]
    (tmp_path / "vg/VG_100K").mkdir(parents=True)
    for number in (0, 1, 9, 10, 18, 19):
        (tmp_path / f"vg/VG_100K/{number}.jpg").touch()
    out, report = tmp_path / "out.json", tmp_path / "deep/report.json"
    command(monkeypatch, "convert", "--engine", engine, "--output", out, "--image-root", tmp_path, *flags)
    command(
        monkeypatch, "convert", "--engine", engine, "--output", out, "--image-root", tmp_path, *flags,
        "--report", report, "--problems", tmp_path / "deep/problems.jsonl",
    )  # fmt: skip
    assert [str(row.id) for row in read_samples(out)][-2:] == ["engine_da_10", "engine_mcp_10"]
    settings = json.loads(report.read_text())["settings"]
    assert settings == {
        "engine": [str(engine)],
        "modes": ["da", "mcp"],
        "group": "image",
        "skills": ["1", "2"],
        "limit": 4,
        "shares": {},
        "sample": None,
        "seed": 7,
        "image_root": str(tmp_path),
        "missing_images": "skip",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["mix", "--base", "no.json", "--engine", "ENGINE"], "missing-file", ["no.json", "liuhaotian"]),
        (["convert", "--engine", "no.json"], "missing-file", ["no.json", "juliozhao"]),
        (["convert", "--engine", "ENGINE", "--check-images", "skip"], "missing-flag", ["--image-root"]),
        (["convert", "--engine", "ENGINE", "--modes", "xx"], "unknown-mode", ["'xx'"]),
        (["convert", "--engine", "ENGINE", "--modes", "da,mc=half"], "not-a-number", ["mc=half"]),
        (["convert", "--engine", "ENGINE", "--modes", "mc=0"], "out-of-range", ["mc", "0.0"]),
        (["convert", "--engine", "ENGINE", "--modes", "mc=nan"], "out-of-range", ["mc"]),
        (["convert", "--engine", "ENGINE", "--sample", "99"], "out-of-range", ["99", "21"]),
        (["mix", "--base", "BASE", "--engine", "ENGINE", "--replay", "-1"], "out-of-range", ["-1"]),
        (["mix", "--base", "BASE", "--engine", "ENGINE", "--incremental"], "missing-flag", ["--round"]),
        (["mix", "--base", "BASE", "--round", "no/1"], "missing-file", ["round.toml"]),
        (["convert", "--engine", "ENGINE", "--qtypes", "9", "--modes", "sa"], "no-samples", ["21 records"]),
    ],
)
def test_errors_that_a_user_can_fix_have_a_code_and_name_the_fault(
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: str,
    facts: list[str],
) -> None:
    given = [str(engine) if word == "ENGINE" else word for word in arguments]
    with raises_code(code) as error:
        command(monkeypatch, *given, "--output", tmp_path / "out.json")
    assert all(fact in str(error.value) for fact in facts)
    assert not (tmp_path / "out.json").exists()


def ids_of(path: Path) -> list[str]:
    return [str(row.id) for row in read_samples(path)]


def test_modes_have_shares_and_records_are_sampled_by_type(tmp_path: Path) -> None:
    engine, out = tmp_path / "engine.jsonl", tmp_path / "out.json"
    engine.write_text(
        "".join(json.dumps(short_record(2 * n) | {"qtype": 1 + n % 3}) + "\n" for n in range(900))
    )
    settings = ConversionSettings(engine=(engine,), modes=("da", "mc"), shares={"mc": 0.3})
    report = convert_files(settings, out)
    assert report["exchanges"]["da"] == 900
    assert abs(report["exchanges"]["mc"] - 270) < 60
    first = ids_of(out)
    convert_files(replace(settings, sample=300), out)
    assert len({one for one in ids_of(out) if "_da_" in one}) == 300
    assert set(ids_of(out)) < set(first)  # a record is drawn for a mode whatever else is converted
    report = convert_files(replace(settings, modes=("mc",), sample=30), out)
    assert report["used"] + report["undrawn"] == 900
    report = convert_files(ConversionSettings(engine=(engine,), sample=300, modes=("da",)), out)
    assert {name: row["da"] for name, row in report["by_skill"].items()} == dict.fromkeys(
        report["by_skill"], 100
    )


def test_replay_draws_from_the_base_in_its_order(engine: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base.json", tmp_path / "out.json"
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    rows = [
        {"id": f"b{number:03}", "conversations": said, **({"type": "rare"} if number % 10 == 0 else {})}
        for number in range(100)
    ]
    base.write_text(json.dumps(rows))
    settings = ConversionSettings(engine=(engine,), modes=("da",))
    report = convert_files(settings, out, base=base, replay=Replay(2.0, by_type=True))
    kept = ids_of(out)[:40]
    assert (report["base"]["records"], report["base"]["of"], report["added"]) == (40, 100, 20)
    assert kept == sorted(kept)
    assert sum(int(name[1:]) % 10 == 0 for name in kept) == 4
    convert_files(settings, out, base=base, replay=Replay(2.0, by_type=True))
    assert ids_of(out)[:40] == kept
    convert_files(settings, out, base=base, replay=Replay(2.0, by_type=True, seed=1))
    assert ids_of(out)[:40] != kept
    for ratio, count in ((0.0, 0), (1e9, 100)):
        assert convert_files(settings, out, base=base, replay=Replay(ratio))["base"]["records"] == count


def long_record(number: int) -> dict[str, Any]:
    return {
        "instruction": "Where is it? " * 5,
        "answer": "It is there. " * 6,
        "options": ["a", "b", "c", "d"],
        "choice_answer": "C",
        "image": f"vg/VG_100K/{number}.jpg",
        "qtype": 4,
        "undocumented": "x" * 4500,
    }


def short_record(number: int) -> dict[str, Any]:
    """About 500 bytes; of every other record one field is refused."""
    letter = "X" if number % 2 else "C"
    return long_record(number) | {"choice_answer": letter, "undocumented": "x" * 200}


@pytest.mark.parametrize(
    ("record", "count"),
    [
        (long_record, 12_500),
        (short_record, 20_000),
    ],
    ids=["long", "short"],
)
def test_memory_holds_digests_not_records(
    base: Path, tmp_path: Path, record: Callable[[int], dict[str, Any]], count: int
) -> None:
    code = (
        # Not getrusage: its peak is inherited from the process that started this one.
        "import re, sys; from llava.data_engine.__main__ import main; main();"
        "status = open('/proc/self/status').read();"
        "sys.stderr.write('\\npeak ' + re.search(r'VmHWM:\\s+(\\d+)', status)[1])"
    )

    def peak_kilobytes(records: int) -> int:
        with (tmp_path / "engine.json").open("w") as stream:
            for number in range(records):
                stream.write(("," if number else "[") + json.dumps(record(number)))
            stream.write("]")
        files = ["--base", base, "--engine", tmp_path / "engine.json", "--output", tmp_path / "mixed.json"]
        result = subprocess.run(
            [sys.executable, "-c", code, "mix", *map(str, files)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert f"records: {records:,} read, {records:,} used" in result.stdout
        return int(result.stderr.rsplit("peak ", 1)[1])

    # Measured: 3.5 MB (long) and 5.2 MB (short). Holding the exchanges, as grouping does, takes 17 and 21 MB.
    assert peak_kilobytes(count) - peak_kilobytes(count // 5) < 8_000
