"""Chunks, journals and merging: every question answered exactly once, or nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.errors import AnswersError, SettingsError
from llava.files import read_json, read_jsonl
from llava.infer import digests
from llava.infer.jobs.fingerprint import fingerprint_model
from llava.infer.jobs.journal import Entry, Journal, Key
from llava.infer.jobs.shards import choose_shard, merge_shards, shard_bounds, shard_positions
from llava.model.loading import locate
from support.errors import raises_code
from support.full_disk import files_of_at_most

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


def test_answers_of_two_models_do_not_merge(tmp_path: Path) -> None:
    journal = answered(tmp_path, "1_0", [0, 1])
    for position, model in ((2, "7b"), (3, "13b")):
        path = tmp_path / f"2_{position % 2}.jsonl"
        row = {**entry(position).row, "model_id": model}
        path.write_text(json.dumps({"position": position, "margin": None, "row": row}) + "\n")
    with raises_code("several-models") as error:
        journal.read()
    assert "2_0.jsonl:1: the answer to 2 is of the model '7b'" in str(error.value)


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


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as unchanged for long right after they are written."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)


def flip(path: Path, place: int) -> None:
    """Change one byte, and leave size and time of modification as they were."""
    times = path.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("place", [0, 4_000_001, -1])
@pytest.mark.parametrize("name", ["model/a.safetensors", "base/pytorch_model.bin", "tower/model.safetensors"])
def test_every_byte_of_a_model_counts_and_its_name_and_training_state_do_not(
    tmp_path: Path, settled: None, name: str, place: int
) -> None:
    for folder in ("model", "base", "tower"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model/adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (tmp_path / "model/config.json").write_text('{"mm_vision_tower": "tower"}')
    weights = tmp_path / name
    weights.write_bytes(bytes(range(251)) * 32_000)
    before = fingerprint_model(str(tmp_path / "model"), None)
    assert None not in before.values()
    (tmp_path / "model/training_args.bin").write_text("not a weight")
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert fingerprint_model(str(tmp_path / "copy"), str(tmp_path / "base")) == before
    flip(weights, place)
    after = fingerprint_model(str(tmp_path / "model"), None)
    part = {"model": "weights"}.get(weights.parent.name, weights.parent.name)
    assert [key for key, value in before.items() if value != after[key]] == [part]


def test_weights_are_read_once_and_by_one_process(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a.bin").write_bytes(b"x" * 1000)
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "cache"))
    first = fingerprint_model(str(tmp_path / "model"), None)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "hash_file", None)
        assert fingerprint_model(str(tmp_path / "model"), None) == first
    for damage in ("{", "[1, 2]", '{"1": 2}'):
        (tmp_path / "cache/digests.json").write_text(damage)
        assert fingerprint_model(str(tmp_path / "model"), None) == first
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "full"))
    with files_of_at_most(10):
        assert fingerprint_model(str(tmp_path / "model"), None) == first
    monkeypatch.setenv("LLAVA_CACHE", "/proc/no-such-folder")
    assert fingerprint_model(str(tmp_path / "model"), None) == first


def test_a_file_that_has_just_changed_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("a")
    assert digests.file_state(path) is None
    seen = digests.look_at(path)
    path.write_text("b")
    assert not seen.is_still_in(path)
    path.write_text("a")
    assert seen.is_still_in(path)


def test_a_config_that_is_no_object_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    assert fingerprint_model(str(tmp_path), None)["tower"] is None


@pytest.mark.parametrize(
    "name",
    [
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "generation_config.json",
        "model.safetensors.index.json",
        "../clip/preprocessor_config.json",
    ],
)
def test_a_models_fingerprint_covers_tokenizer_generation_and_vision_tower(tmp_path: Path, name: str) -> None:
    model, clip = tmp_path / "model", tmp_path / "clip"
    model.mkdir()
    clip.mkdir()
    (model / "config.json").write_text('{"mm_vision_tower": "clip"}')
    (model / name).write_text("{}")
    before = fingerprint_model(str(model), None)
    (model / name).write_text("[]")
    assert fingerprint_model(str(model), None) != before


@pytest.mark.parametrize("has_own", [True, False])
def test_a_checkpoint_without_a_config_has_its_runs(tmp_path: Path, has_own: bool) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    if has_own:
        (checkpoint / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint_model(str(checkpoint), None)
    (tmp_path / "config.json").write_text('{"image_aspect_ratio": "pad"}')
    assert (fingerprint_model(str(checkpoint), None) == before) == has_own


def test_a_hub_ids_fingerprint_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "liuhaotian/llava-v1.5-7b"
    cache = tmp_path / "models--liuhaotian--llava-v1.5-7b"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with raises_code("hub-unreachable"):
        fingerprint_model(name, None)
    found = []
    for commit in ("1" * 40, "2" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
        (cache / "snapshots" / commit / "model.safetensors").write_text(commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs/main").write_text(commit)
        locate._download.cache_clear()  # as in another process
        found.append(fingerprint_model(name, None)["weights"])
    copy = fingerprint_model(str(cache / "snapshots" / ("2" * 40)), None)["weights"]
    assert found[0] != found[1] == copy


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
