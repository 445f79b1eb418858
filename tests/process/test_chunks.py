"""Chunks, journals and merging: every question answered exactly once, or nothing is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.errors import AnswersError, SettingsError
from llava.files import read_json, read_jsonl
from llava.infer.jobs.fingerprint import checkpoint_fingerprint
from llava.infer.jobs.journal import Entry, Journal, Key
from llava.infer.jobs.shards import choose_shard, merge_shards, shard_bounds, shard_positions

ABOUT = {"model": "tiny", "conv_mode": "vicuna_v1"}


def keys(total: int) -> list[Key]:
    return [(number % 3, f"question {number}") for number in range(total)]


def entry(position: int, text: str = "A") -> Entry:
    identifier, prompt = keys(position + 1)[position]
    return Entry({"question_id": identifier, "prompt": prompt, "text": text})


def answered(folder: Path, name: str, positions: list[int], total: int = 4) -> Journal:
    journal = Journal.open(folder, ABOUT, keys(total))
    with journal.writer(name) as writer:
        for position in positions:
            writer.append(position, entry(position))
    return journal


def test_chunks_are_the_originals(golden: Path) -> None:
    cases = read_json(golden / "xi_scripts" / "chunks.json")
    assert cases
    for case in cases:
        lengths = [len(chunk) for chunk in case["chunks"]]
        count = case["k"]
        spans = [shard_bounds(case["n"], count, index) for index in range(count)]
        assert [stop - start for start, stop in spans if stop > start] == lengths


@pytest.mark.parametrize(("total", "count"), [(0, 1), (1, 4), (9, 8), (10, 3), (14233, 7)])
def test_chunks_cover_every_question_once_even_where_the_original_failed(total: int, count: int) -> None:
    spans = [shard_bounds(total, count, index) for index in range(count)]
    assert [position for start, stop in spans for position in range(start, stop)] == list(range(total))


def test_chunks_keep_an_images_questions_together_and_the_originals_sizes() -> None:
    images = [*"abcabcabca", None, None, "a"]
    chunks = [shard_positions(images, 4, index) for index in range(4)]
    assert chunks == [[0, 3, 6, 9], [1, 4, 7, 12], [2, 5, 8, 10], [11]]
    assert [shard_positions(images, 1, 0), shard_positions(images, 14, 13)] == [list(range(13)), []]
    grouped = [*"aabbbc", None]
    assert [shard_positions(grouped, 3, index) for index in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_gqas_chunks_share_as_much_as_the_whole_file(realdata: Path) -> None:
    images = [row["image"] for _, row in read_jsonl(realdata / "gqa/llava_gqa_testdev_balanced.jsonl")]
    chunks = [shard_positions(images, 8, index) for index in range(8)]
    assert sorted(position for chunk in chunks for position in chunk) == list(range(len(images)))
    assert [len(chunk) for chunk in chunks] == [1573] * 7 + [1567]
    read = sum(len({images[position] for position in chunk}) for chunk in chunks)
    assert read <= len(set(images)) + 7


@pytest.mark.parametrize(("count", "index"), [(2, 2), (2, -1), (0, 0)])
def test_a_chunk_outside_the_count_is_refused(count: int, index: int) -> None:
    with pytest.raises(SettingsError, match=f"--chunk-idx {index} of --num-chunks {count}"):
        choose_shard(count, index, {})


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, (1, 0, None)),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, (1, 0, None)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (4, 3, 1)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, (2, 1, 0)),
        ({"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, (2, 1, 0)),
        # The batch script is one process, whatever the job's size.
        ({"SLURM_JOB_ID": "9", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (1, 0, None)),
    ],
)
def test_a_launcher_names_the_chunk_that_flags_do_not(
    environment: dict[str, str], wanted: tuple[int, int, int | None]
) -> None:
    chunk = choose_shard(None, None, environment)
    assert (chunk.count, chunk.index, chunk.device) == wanted
    assert choose_shard(3, 2, environment).name == "3_2"


def test_answers_of_any_chunks_merge_in_question_order(tmp_path: Path) -> None:
    answered(tmp_path / "journal", "2_1", [3, 2])
    answered(tmp_path / "journal", "1_0", [1, 0])
    assert merge_shards(tmp_path / "journal", tmp_path / "merge.jsonl") == 4
    prompts = [row["prompt"] for _, row in read_jsonl(tmp_path / "merge.jsonl")]
    assert prompts == [prompt for _, prompt in keys(4)]


def test_a_missing_answer_merges_nothing(tmp_path: Path) -> None:
    answered(tmp_path / "journal", "2_0", [0, 1])
    with pytest.raises(AnswersError, match="2 of 4 questions have no answer, the first is number 3"):
        merge_shards(tmp_path / "journal", tmp_path / "merge.jsonl")
    assert not (tmp_path / "merge.jsonl").exists()


def test_a_second_different_answer_is_an_error(tmp_path: Path) -> None:
    journal = answered(tmp_path, "1_0", [0, 1, 2, 3])
    with journal.writer("1_0") as writer:
        writer.append(2, entry(2))
    assert len(journal.read()) == 4
    with journal.writer("1_0") as writer:
        writer.append(2, entry(2, "B"))
    with pytest.raises(AnswersError, match=r"1_0.jsonl:6: a second, different answer to question 2"):
        journal.read()


def test_a_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    journal = answered(tmp_path, "1_0", [0, 1, 2])
    path = tmp_path / "1_0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert sorted(journal.read()) == [0, 1]
    answered(tmp_path, "1_0", [2, 3])
    assert sorted(journal.read()) == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [b'{"position": 0, "ma\n', b"\xff\xfe\n", b"[]\n", b'{"position": 0}\n'])
def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path, damage: bytes) -> None:
    journal = answered(tmp_path, "1_0", [0, 1])
    path = tmp_path / "1_0.jsonl"
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(AnswersError, match=r"1_0.jsonl:1: not an answer .* Remove this line"):
        journal.read()


def test_answers_of_another_run_are_refused_and_say_what_differs(tmp_path: Path) -> None:
    answered(tmp_path, "1_0", [0])
    with pytest.raises(
        AnswersError, match=r"another run: conv_mode was 'vicuna_v1', is 'plain'.*--overwrite"
    ):
        Journal.open(tmp_path, {**ABOUT, "conv_mode": "plain"}, keys(4))
    with pytest.raises(AnswersError, match="its questions differ"):
        Journal.open(tmp_path, ABOUT, keys(5))
    assert Journal.open(tmp_path, {**ABOUT, "conv_mode": "plain"}, keys(4), overwrite=True).read() == {}


def test_answers_that_nobody_can_place_are_refused(tmp_path: Path) -> None:
    answered(tmp_path, "1_0", [0])
    (tmp_path / "run.json").unlink()
    with pytest.raises(AnswersError, match=r"answers without their run.json"):
        Journal.open(tmp_path, ABOUT, keys(4))


def test_answers_changed_by_hand_do_not_merge(tmp_path: Path) -> None:
    journal = answered(tmp_path, "1_0", [0, 1, 2, 3])
    path = tmp_path / "1_0.jsonl"
    path.write_text(path.read_text().replace("question 2", "question two"))
    with pytest.raises(AnswersError, match="not those of the questions"):
        journal.check_order(journal.read())


HOLD = """
import sys
from collections.abc import Callable
from pathlib import Path
from llava.infer.jobs.journal import Journal
with Journal.existing(Path(sys.argv[1])).writer(sys.argv[2]):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    journal = answered(tmp_path, "2_0", [0])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "2_0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "holding\n"
    try:
        with (
            pytest.raises(AnswersError, match=f"being answered by process {holder.pid} "),
            journal.writer("2_0"),
        ):
            pass
        with (
            pytest.raises(AnswersError, match=f"in use in 2 shards by process {holder.pid} "),
            journal.writer("1_0"),
        ):
            pass
        with pytest.raises(AnswersError, match="in use"):
            Journal.discard(tmp_path)
        with journal.writer("2_1"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with journal.writer("2_0"), pytest.raises(AnswersError), journal.writer("1_0"):
        pass
    assert json.loads((tmp_path / "2_0.jsonl").read_text())["position"] == 0


def safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header: dict[str, Any] = {}
    start = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))


def torch_zip(path: Path, tensors: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in tensors.items():
            archive.writestr(zipfile.ZipInfo(f"archive/data/{name}"), data)


@pytest.mark.parametrize(
    ("name", "write"),
    [("model.safetensors", safetensors), ("pytorch_model.bin", torch_zip)],
)
def test_one_small_tensor_of_a_large_file_changes_the_fingerprint_and_copying_does_not(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], None]
) -> None:
    first, copy = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    large = bytes(range(256)) * 80_000
    write(first / name, {"a": large, "projector": b"old", "z": large})
    (first / "config.json").write_text("{}")
    before = checkpoint_fingerprint(str(first))
    shutil.copytree(first, copy)
    assert checkpoint_fingerprint(str(copy)) == before
    (copy / "training_args.bin").write_text("not a weight")
    assert checkpoint_fingerprint(str(copy)) == before
    write(first / name, {"a": large, "projector": b"new", "z": large})
    assert checkpoint_fingerprint(str(first)) != before


def test_a_config_that_is_no_object_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    assert checkpoint_fingerprint(str(tmp_path))


@pytest.mark.parametrize("content", [b"no header", b"\xff" * 3_000_000, b""])
def test_a_weights_file_of_no_known_form_is_sampled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    before = checkpoint_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(content + b"x")
    assert checkpoint_fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize(
    "name",
    [
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "generation_config.json",
        "../clip/a.bin",
    ],
)
def test_a_models_fingerprint_covers_tokenizer_generation_and_vision_tower(tmp_path: Path, name: str) -> None:
    model, clip = tmp_path / "model", tmp_path / "clip"
    model.mkdir()
    clip.mkdir()
    (model / "config.json").write_text('{"mm_vision_tower": "clip"}')
    (model / name).write_text("{}")
    before = checkpoint_fingerprint(str(model))
    (model / name).write_text("[]")
    assert checkpoint_fingerprint(str(model)) != before


def test_a_hub_ids_fingerprint_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "liuhaotian/llava-v1.5-7b"
    cache = tmp_path / "models--liuhaotian--llava-v1.5-7b"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint_fingerprint(name) == name
    for commit in ("1" * 40, "2" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs/main").write_text(commit)
        assert checkpoint_fingerprint(name) == f"{name} at {commit}"


def test_a_full_disk_is_named_and_keeps_the_answers_before_it(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(32) / "journal"
    keys = [(number, "p") for number in range(9)]
    journal = Journal.open(folder, {}, keys)
    rows = [{"question_id": number, "prompt": "p", "text": "x" * 4000} for number in range(9)]

    def answer_all() -> None:
        with journal.writer("1_0") as writer:
            for position, row in enumerate(rows):
                writer.append(position, Entry(row))

    with pytest.raises(AnswersError, match=r"1_0\.jsonl: No space left on device; the answers before"):
        answer_all()
    kept = journal.read()
    assert 0 < len(kept) < len(rows)
    assert [kept[position].row for position in range(len(kept))] == rows[: len(kept)]
