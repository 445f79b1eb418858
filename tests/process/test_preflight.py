"""Training data is checked before the first step; problems are reported and the policy is applied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.data.check import main
from llava.data.checks import image_files, lengths
from llava.data.checks.repair import QUESTION_DROPPED, TOKEN_ADDED, TOKENS_DROPPED, repair_sample
from llava.errors import DataError
from llava.files import read_json, write_json
from llava.schema import Sample, Turn
from llava.train.arguments import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import assemble, fit
from support.errors import raises_code
from support.training_processes import TrainingRun
from support.warm_python import warm_python


def turns_of(*texts: str, first: str = "human") -> list[dict[str, str]]:
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


def record(identifier: str, image: str | None = "good.png", *texts: str) -> dict[str, Any]:
    row = {"id": identifier, "conversations": turns_of(*(texts or ("<image>\nWhat?", "A cat.")))}
    return row if image is None else {**row, "image": image}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A training file with nearly every kind of problem, and its images."""
    images = tmp_path / "images"
    images.mkdir()
    picture = Image.effect_noise((90, 60), 60).convert("RGB")
    picture.save(images / "good.png")
    picture.save(images / "lies.jpg", format="PNG")
    picture.save(images / "renamed.jpeg")
    whole = (images / "good.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("not found")
    rows = [
        record("fine"),
        record("lies", "lies.jpg"),
        record("cut", "cut.png"),
        record("text", "text.jpg"),
        record("missing", "none.png"),
        record("renamed", "renamed.jpg"),
        record("no token", "good.png", "What?", "A cat."),
        record("two tokens", "good.png", "<image>\nWhat?", "A cat.", "<image>\nWhy?", "It is."),
        record("answered token", "good.png", "<image>\nWhat?", "<image>"),
        record("asked last", "good.png", "<image>\nWhat?", "A cat.", "Why?"),
        record("alone", None, "Hello", "Hi"),
        record("no answer", "good.png", "<image>\nWhat?", ""),
        record("long", "good.png", "<image>\n" + "what " * 400, "Nothing."),
        {"id": "twice", "conversations": turns_of("a", "b") + turns_of("c", first="gpt")},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


def check(world: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    argv = ["check", str(world / "data.json"), "--image-folder", str(world / "images")]
    argv += ["--report", str(world / "report.json"), "--workers", "1", *more]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    return json.loads((world / "report.json").read_text())


def outcomes(report: dict[str, Any]) -> set[tuple[int, str, str]]:
    return {(problem["row"], problem["kind"], problem["outcome"]) for problem in report["problems"]}


BAD = {
    (2, "image cannot be read"),
    (3, "image cannot be read"),
    (4, "image missing"),
    (5, "image missing"),
    (7, "image token in several turns"),
    (8, "image token in several turns"),
    (13, "turns do not alternate"),
}


def test_the_error_policy_counts_all_problems_and_names_the_first(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises_code("image-cannot-be-read") as error:
        check(world, monkeypatch)
    text = str(error.value)
    assert f"data.json: record 2 (id 'cut'): {world}/images/cut.png: " in text
    assert "2 image token in several turns" in text
    assert "2 image cannot be read" in text
    assert "2 image missing" in text
    assert "\n" not in text
    report = json.loads((world / "report.json").read_text())
    assert outcomes(report) == {(*problem, "refused") for problem in BAD}
    assert (report["records"], report["samples"], report["images"]) == (14, 7, 6)
    assert report["images_of_another_format_than_their_suffix"] == ["lies.jpg"]


def test_the_skip_policy_leaves_out_what_the_error_policy_refuses(
    golden: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(golden / "weights/tiny-vicuna-v1.5")
    report = check(
        world,
        monkeypatch,
        "--policy",
        "skip",
        "--model",
        model,
        "--max-length",
        "128",
        "--image-positions",
        "16",
    )
    assert outcomes(report) == {(*problem, "left out") for problem in BAD}
    assert report["samples"] == 14 - len(BAD)
    assert report["positions"]["samples_cut"] == 1
    assert report["positions"]["samples_that_teach_nothing"] == {
        "image not in text": 1,
        "no answer": 1,
        "answer cut away": 1,
    }
    output = capsys.readouterr().out
    assert "14 records, 7 left to learn from" in output
    assert "2 left out: image missing\n    " in output
    assert "1 are cut at 128 positions" in output


def test_the_repair_policy_repairs_what_is_certain(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(world, monkeypatch, "--policy", "repair")
    lost = {problem for problem in BAD if problem[0] not in (5, 7)}
    assert outcomes(report) == {(*problem, "left out") for problem in lost} | {
        (5, "image had another suffix", "mended"),
        (6, TOKEN_ADDED, "mended"),
        (7, TOKENS_DROPPED, "mended"),
        (9, QUESTION_DROPPED, "mended"),
    }
    assert report["samples"] == 14 - len(lost)


@pytest.mark.parametrize("policy", ["skip", "repair"])
def test_images_of_every_odd_kind_are_left_out(
    world: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    images = world / "images"
    (images / "folder.jpg").mkdir()
    (images / "gone.jpg").symlink_to(images / "nowhere.jpg")
    os.mkfifo(images / "pipe.jpg")
    Image.new("L", (20_000, 2)).save(images / "strip.png")
    Image.new("RGB", (4, 4)).save(images / "other.tga")
    Image.new("RGB", (4, 4)).save(images / "figure.eps")
    named = {
        **dict.fromkeys(("folder.jpg", "gone.jpg", "pipe.jpg", "good.png/1.jpg"), "image missing"),
        **dict.fromkeys(("a" * 5000, "b/" * 3000 + "1.jpg"), "image missing"),
        **dict.fromkeys(("strip.png", "other.tga", "figure.eps"), "image cannot be read"),
        **dict.fromkeys(("/etc/hosts", "../data.json", "a\0.jpg", ".."), "bad image name"),
    }
    rows = [record("fine"), *(record(str(place), name) for place, name in enumerate(named))]
    (world / "data.json").write_text(json.dumps(rows))
    report = check(world, monkeypatch, "--policy", policy)
    assert outcomes(report) == {
        (place, kind, "left out") for place, kind in enumerate(named.values(), start=1)
    }
    assert all(problem["message"].count("data.json: record") == 1 for problem in report["problems"])


def test_repairs_of_a_sample() -> None:
    def repaired(image: str | None, *texts: str, first: str = "human") -> tuple[list[str], tuple[str, ...]]:
        turns = tuple(Turn(turn["from"], turn["value"]) for turn in turns_of(*texts, first=first))  # type: ignore[arg-type]
        sample, kinds = repair_sample(Sample("s", turns, image))
        return [turn.text for turn in sample.turns], kinds

    assert repaired("a", "What?", "A cat.") == (["<image>\nWhat?", "A cat."], (TOKEN_ADDED,))
    assert repaired("a", "Hi", "What?", "A cat.", first="gpt")[0] == ["Hi", "<image>\nWhat?", "A cat."]
    assert repaired("a", "I see", first="gpt") == (["I see"], ())
    assert repaired("a", "<image>\nA", "b", "C <image>", "d")[0] == ["<image>\nA", "b", "C", "d"]
    assert repaired("a", "<image>\nA", "<image>", "C", "d") == (["<image>\nA", "<image>", "C", "d"], ())
    assert repaired(None, "A", "b", "C") == (["A", "b"], (QUESTION_DROPPED,))
    assert repaired(None, "A") == (["A"], ())
    assert repaired("a", "A", "b", "C <image>") == (["<image>\nA", "b"], (QUESTION_DROPPED, TOKEN_ADDED))


def test_unchanged_files_are_not_checked_again(
    golden: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    counted: list[Any] = []
    inspect, count = image_files._inspect, lengths._count
    monkeypatch.setattr(image_files, "_inspect", lambda path: (opened.append(path.name), inspect(path))[1])
    monkeypatch.setattr(lengths, "_count", lambda *about: (counted.append(1), count(*about))[1])
    monkeypatch.setattr(lengths, "_PROBES", 0)
    more = ["--policy", "skip", "--model", str(golden / "weights/tiny-vicuna-v1.5")]
    first = check(world, monkeypatch, *more)
    assert len(opened) == 6
    assert len(counted) == 12 - 1
    assert check(world, monkeypatch, *more) == first
    shutil.copyfile(world / "images/good.png", world / "images/cut.png")
    mended = check(world, monkeypatch, *more)
    assert opened[6:] == ["cut.png"]
    assert len(counted) == 11
    assert outcomes(first) - outcomes(mended) == {(2, "image cannot be read", "left out")}


def test_an_interrupted_check_keeps_its_results(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    inspect = image_files._inspect

    def interrupted(path: Path) -> Any:
        opened.append(path.name)
        if len(opened) == 4:
            raise KeyboardInterrupt
        return inspect(path)

    monkeypatch.setattr(image_files, "_inspect", interrupted)
    monkeypatch.setattr(image_files, "_OPEN_BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        check(world, monkeypatch, "--policy", "skip")
    check(world, monkeypatch, "--policy", "skip")
    assert len(opened) == len(set(opened)) + 1 == 7


def test_several_processes_find_the_same(golden: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--policy", "skip", "--model", str(golden / "weights/tiny-vicuna-v1.5")]
    one_process = check(world, monkeypatch, *more)
    monkeypatch.setattr(image_files, "_OPEN_BATCH", 2)
    monkeypatch.setattr(lengths, "_COUNT_BATCH", 3)
    monkeypatch.setenv("LLAVA_CACHE", str(world / "cache"))
    assert check(world, monkeypatch, *more, "--workers", "2") == one_process


def test_the_command_exits_with_2_and_prints_one_line(world: Path) -> None:
    command = [warm_python(), "-m", "llava.data.check", "data.json", "--image-folder", "images"]
    result = subprocess.run(command, cwd=world, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: data.json: record 2 (id 'cut'): images/cut.png: ")
    assert "14 records, 7 left to learn from" in result.stdout


# ---- in training


def argv_of(golden: Path, world: Path, *more: str) -> list[str]:
    recorded = json.loads((golden / "viii_lora.json").read_text())["argv"]
    chosen = {
        "--data_path": str(world / "data.json"),
        "--image_folder": str(world / "images"),
        "--output_dir": str(world / "out"),
        "--model_name_or_path": str(golden / "weights/tiny-vicuna-v1.5"),
        "--vision_tower": str(golden / "weights/tiny-clip-vit-patch14-56"),
        "--max_steps": "3",
        "--per_device_train_batch_size": "4",
        "--gradient_accumulation_steps": "1",
    }
    pretrained = recorded[recorded.index("--pretrain_mm_mlp_adapter") + 1]
    chosen["--pretrain_mm_mlp_adapter"] = str(golden / pretrained)
    return [*recorded, *(word for pair in chosen.items() for word in pair), *more]


def train(argv: list[str]) -> LLaVATrainer:
    return fit(assemble(*parse_arguments(argv)))


@pytest.mark.parametrize(("policy", "left"), [("skip", 7), ("repair", 9)])
def test_a_run_continues_without_bad_samples(golden: Path, world: Path, policy: str, left: int) -> None:
    trainer = train(argv_of(golden, world, "--bad_samples", policy, "--max_steps", "-1"))
    assert len(trainer.train_dataset) == left
    assert len(trainer.train_dataset.token_lengths.positions) == left
    report = json.loads((world / "out/data_check_data.json").read_text())
    assert report["samples"] == left
    assert report["policy"] == policy


def test_an_image_that_breaks_during_a_run_is_not_learned_from(golden: Path, world: Path) -> None:
    (world / "data.json").write_text(json.dumps([record("a"), record("b", "lies.jpg")] * 4))
    for policy in ("error", "skip"):
        assembled = assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))
        content = (world / "images/lies.jpg").read_bytes()
        (world / "images/lies.jpg").unlink()
        if policy == "error":
            with pytest.raises(
                DataError,
                match=r"step 1: .*: record \d \(id 'b'\): .*lies.jpg: no such image.*/checkpoint-1\b",
            ):
                fit(assembled)
            (world / "images/lies.jpg").write_bytes(content)
            trainer = fit(assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy))))
            assert trainer.state.global_step == 3
            shutil.rmtree(world / "out")
            continue
        trainer = fit(assembled)
        assert trainer.problems.keys() == {"image cannot be read"}
        assert trainer.state.global_step == 3
        shutil.move(world / "images", world / "gone")
        with raises_code("missing-image"):  # the whole image folder is missing: that is no bad sample
            assembled.dataset[0]


@pytest.mark.parametrize(
    ("policy", "codes"), [("error", ("image-missing", "no-turns")), ("skip", ("no-samples", "no-samples"))]
)
def test_a_file_with_only_bad_records_is_refused(
    golden: Path, world: Path, policy: str, codes: tuple[str, str]
) -> None:
    (world / "data.json").write_text(json.dumps([record("b", "none.png"), {"id": "empty"}]))
    with raises_code(codes[0]):
        assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))
    (world / "data.json").write_text(json.dumps([{"id": "empty"}]))
    with raises_code(codes[1]):
        assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))


def select_as_rank(argv: list[str], folder: Path) -> None:
    """Write down how many images this rank opened, and which records it selected."""
    opened: list[str] = []
    inspect = image_files._inspect
    image_files._inspect = lambda path: (opened.append(path.name), inspect(path))[1]
    dataset = assemble(*parse_arguments(argv)).dataset
    write_json(folder / f"{os.environ['RANK']}.json", [len(opened), dataset.samples.rows.tolist()])


@pytest.mark.slow
def test_one_of_two_ranks_checks_and_both_use_the_same_samples(golden: Path, world: Path) -> None:
    work = partial(select_as_rank, argv_of(golden, world, "--bad_samples", "skip"), world)
    run = TrainingRun(work, cwd=world, log=world / "log", processes=2)
    assert run.wait() == [0, 0], run.output()
    ranks = [read_json(world / f"{rank}.json") for rank in range(2)]
    assert sorted(opened for opened, _ in ranks) == [0, 6]
    assert ranks[0][1] == ranks[1][1] == [0, 1, 6, 9, 10, 11, 12]
