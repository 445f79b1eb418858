"""Training data is looked at before the first step; what is wrong is counted, and dealt with as asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.data.check import main
from llava.data.checks import image_files, lengths
from llava.data.checks.repair import QUESTION_DROPPED, TOKEN_ADDED, TOKENS_DROPPED, mend
from llava.errors import DataError
from llava.schema import Sample, Turn
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import fit


def said(*texts: str, first: str = "human") -> list[dict[str, str]]:
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[place % 2], "value": text} for place, text in enumerate(texts)]


def record(identifier: str, image: str | None = "good.png", *texts: str) -> dict[str, Any]:
    row = {"id": identifier, "conversations": said(*(texts or ("<image>\nWhat?", "A cat.")))}
    return row if image is None else {**row, "image": image}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A training file in which nearly everything is wrong that can be, and its images."""
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
        {"id": "twice", "conversations": said("a", "b") + said("c", first="gpt")},
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


def test_an_error_counts_all_that_is_wrong_and_names_the_first(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as caught:
        check(world, monkeypatch)
    text = str(caught.value)
    assert f"data.json: record 2 (id 'cut'): {world}/images/cut.png: cannot be read as an image" in text
    assert "(in all: 2 image token in several turns, " in text
    assert "2 image cannot be read" in text
    assert "2 image missing" in text
    assert "\n" not in text
    report = json.loads((world / "report.json").read_text())
    assert outcomes(report) == {(*problem, "refused") for problem in BAD}
    assert (report["records"], report["samples"], report["images"]) == (14, 7, 6)
    assert report["images_of_another_format_than_their_suffix"] == ["lies.jpg"]


def test_skip_leaves_out_what_an_error_refuses(
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
    said = capsys.readouterr().out
    assert "14 records, 7 left to learn from" in said
    assert "2 left out: image missing\n    " in said
    assert "1 are cut at 128 positions" in said


def test_repair_mends_what_it_safely_can(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(world, monkeypatch, "--policy", "repair")
    lost = {problem for problem in BAD if problem[0] not in (5, 7)}
    assert outcomes(report) == {(*problem, "left out") for problem in lost} | {
        (5, "image had another suffix", "mended"),
        (6, TOKEN_ADDED, "mended"),
        (7, TOKENS_DROPPED, "mended"),
        (9, QUESTION_DROPPED, "mended"),
    }
    assert report["samples"] == 14 - len(lost)


def test_what_is_mended_and_how() -> None:
    def mended(image: str | None, *texts: str, first: str = "human") -> tuple[list[str], tuple[str, ...]]:
        turns = tuple(Turn(turn["from"], turn["value"]) for turn in said(*texts, first=first))  # type: ignore[arg-type]
        sample, names = mend(Sample("s", turns, image))
        return [turn.text for turn in sample.turns], names

    assert mended("a", "What?", "A cat.") == (["<image>\nWhat?", "A cat."], (TOKEN_ADDED,))
    assert mended("a", "Hi", "What?", "A cat.", first="gpt")[0] == ["Hi", "<image>\nWhat?", "A cat."]
    assert mended("a", "I see", first="gpt") == (["I see"], ())
    assert mended("a", "<image>\nA", "b", "C <image>", "d")[0] == ["<image>\nA", "b", "C", "d"]
    assert mended("a", "<image>\nA", "<image>", "C", "d") == (["<image>\nA", "<image>", "C", "d"], ())
    assert mended(None, "A", "b", "C") == (["A", "b"], (QUESTION_DROPPED,))
    assert mended(None, "A") == (["A"], ())
    assert mended("a", "A", "b", "C <image>") == (["<image>\nA", "b"], (QUESTION_DROPPED, TOKEN_ADDED))


def test_what_has_not_changed_is_not_looked_at_again(
    golden: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    counted: list[Any] = []
    look, count = image_files._look, lengths._count
    monkeypatch.setattr(image_files, "_look", lambda path: (opened.append(path.name), look(path))[1])
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


def test_a_look_that_is_broken_off_keeps_what_it_has_done(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    look = image_files._look

    def interrupted(path: Path) -> Any:
        opened.append(path.name)
        if len(opened) == 4:
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(image_files, "_look", interrupted)
    monkeypatch.setattr(image_files, "_OPENED", 1)
    with pytest.raises(KeyboardInterrupt):
        check(world, monkeypatch, "--policy", "skip")
    check(world, monkeypatch, "--policy", "skip")
    assert len(opened) == len(set(opened)) + 1 == 7


def test_several_processes_find_the_same(golden: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--policy", "skip", "--model", str(golden / "weights/tiny-vicuna-v1.5")]
    alone = check(world, monkeypatch, *more)
    monkeypatch.setattr(image_files, "_OPENED", 2)
    monkeypatch.setattr(lengths, "_COUNTED", 3)
    monkeypatch.setenv("LLAVA_CACHE", str(world / "cache"))
    assert check(world, monkeypatch, *more, "--workers", "2") == alone


def test_the_command_ends_with_2_and_one_line(world: Path) -> None:
    command = [sys.executable, "-m", "llava.data.check", "data.json", "--image-folder", "images"]
    result = subprocess.run(command, cwd=world, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: data.json: record 2 (id 'cut'): images/cut.png: cannot")
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


def trained(argv: list[str]) -> LLaVATrainer:
    return fit(assemble(*parse_arguments(argv)))


@pytest.mark.parametrize(("policy", "left"), [("skip", 7), ("repair", 9)])
def test_a_run_goes_on_without_bad_samples(golden: Path, world: Path, policy: str, left: int) -> None:
    trainer = trained(argv_of(golden, world, "--bad_samples", policy, "--max_steps", "-1"))
    assert len(trainer.train_dataset) == left
    assert len(trainer.train_dataset.token_lengths.positions) == left
    report = json.loads((world / "out/data_check_data.json").read_text())
    assert report["samples"] == left
    assert report["policy"] == policy


def test_an_image_that_goes_bad_amid_a_run_teaches_nothing(golden: Path, world: Path) -> None:
    (world / "data.json").write_text(json.dumps([record("a"), record("b", "lies.jpg")] * 4))
    for policy in ("error", "skip"):
        assembled = assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))
        content = (world / "images/lies.jpg").read_bytes()
        (world / "images/lies.jpg").unlink()
        if policy == "error":
            with pytest.raises(
                DataError,
                match=r"step 1: .*: record \d \(id 'b'\): .*lies.jpg: no such image.*/checkpoint-1, ",
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
        with pytest.raises(DataError, match="no such image file"):  # all of them: that is no bad sample
            assembled.dataset[0]


@pytest.mark.parametrize(
    ("policy", "message"), [("error", r"record 0 \(id 'b'\): .*no such image"), ("skip", "no sample is left")]
)
def test_a_file_of_bad_records_alone_is_refused(golden: Path, world: Path, policy: str, message: str) -> None:
    (world / "data.json").write_text(json.dumps([record("b", "none.png"), {"id": "empty"}]))
    with pytest.raises(DataError, match=message):
        assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))
    (world / "data.json").write_text(json.dumps([{"id": "empty"}]))
    with pytest.raises(DataError, match="conversations is missing" if policy == "error" else message):
        assemble(*parse_arguments(argv_of(golden, world, "--bad_samples", policy)))


_RANK = """
import json, sys
from llava.data.checks import image_files
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble

opened = []
look = image_files._look
image_files._look = lambda path: (opened.append(path.name), look(path))[1]
dataset = assemble(*parse_arguments(sys.argv[1:])).dataset
sys.stdout.write("\\n" + json.dumps([len(opened), dataset.samples.rows.tolist()]) + "\\n")
"""


@pytest.mark.slow
def test_of_two_ranks_one_looks_and_both_learn_from_the_same(golden: Path, world: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += [sys.executable, "-c", _RANK, *argv_of(golden, world, "--bad_samples", "skip")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    said = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert sorted(opened for opened, _ in said) == [0, 6]
    assert said[0][1] == said[1][1] == [0, 1, 6, 9, 10, 11, 12]
