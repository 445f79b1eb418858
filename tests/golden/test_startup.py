"""Before its first step a run shows what it learns, and says what it takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.conversation import conv_templates
from llava.data.dataset import LazySupervisedDataset
from llava.errors import SettingsError
from llava.tokenizer import load_tokenizer
from llava.train.arguments import parse_arguments
from llava.train.planning.footprint import measure
from llava.train.planning.foresee import foresee_run
from llava.train.planning.startup import describe_sample, describe_trained
from llava.train.train import assemble, fit, train
from support.errors import raises_code

SYSTEM = "A chat between a curious user and an artificial intelligence assistant. "
SYSTEM += "The assistant gives helpful, detailed, and polite answers to the user's questions."


def dataset_of(
    golden: Path, folder: Path, *turns: str, version: str = "v1", **more: Any
) -> LazySupervisedDataset:
    """A data set of one sample, with an image where its first turn has one."""
    speakers = ("human", "gpt") * len(turns)
    said = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
    record = {"id": "s1", "conversations": said, **({"image": "x.png"} if "<image>" in turns[0] else {})}
    path = folder / "data.json"
    path.write_text(json.dumps([record]))
    tokenizer = load_tokenizer(golden / "weights/tiny-vicuna-v1.5", **{"model_max_length": 2048, **more})
    tokenizer.pad_token = tokenizer.unk_token
    data_args = SimpleNamespace(mm_use_im_start_end=False, is_multimodal=True, image_folder=None)
    return LazySupervisedDataset(path, tokenizer, data_args, template=conv_templates[version])


def test_a_sample_is_shown_with_what_is_learned_marked(golden: Path, tmp_path: Path) -> None:
    dataset = dataset_of(golden, tmp_path, "<image>\nIs it a cat?", "a dog.", "Why?", "It is big.")
    head, text = describe_sample(dataset, 0, 576).split("\n", 1)
    assert text == (
        f"<s> {SYSTEM} USER: <image: 576 positions>\nIs it a cat? ASSISTANT:[[ a dog.</s>]]"
        "USER: Why? ASSISTANT:[[ It is big.</s>]]"
    )
    made = dataset.encode(0)
    learned = sum(label != -100 for label in made.labels)
    assert head == (
        f"sample 's1'; in [[ ]] is what is learned ({learned} of {len(made.labels) + 575} positions):"
    )


def test_text_alone_and_the_plain_template_are_shown_as_they_are_read(golden: Path, tmp_path: Path) -> None:
    text_only = describe_sample(dataset_of(golden, tmp_path, "Is <it> a cat?", "a dog."), 0, 576)
    assert text_only.endswith(f"<s> {SYSTEM} USER: Is <it> a cat? ASSISTANT:[[ a dog.</s>]]")
    (tmp_path / "plain").mkdir()
    plain = describe_sample(
        dataset_of(golden, tmp_path / "plain", "<image>\nWhat?", "a dog", version="plain"), 0, 576
    )
    assert plain.endswith("positions):\n<s><image: 576 positions>[[a dog\n]]")


def test_what_is_cut_away_is_not_shown_as_learned(golden: Path, tmp_path: Path) -> None:
    turns = ("<image>\nIs it a cat?", "a dog and a dog and a dog.")
    positions = len(dataset_of(golden, tmp_path, *turns).encode(0).labels) + 575
    cut = describe_sample(dataset_of(golden, tmp_path, *turns, model_max_length=positions - 4), 0, 576)
    assert f"of {positions - 4} positions" in cut
    assert cut.endswith("]]")
    assert "ASSISTANT:[[ a dog" in cut
    assert "</s>]]" not in cut
    nothing = describe_sample(dataset_of(golden, tmp_path, "Hi", "a dog", model_max_length=20), 0, 576)
    assert "is what is learned (nothing: answer cut away)" in nothing
    assert "[[" not in nothing.split("\n", 1)[1]


def test_a_long_sample_is_not_shown_in_full(golden: Path, tmp_path: Path) -> None:
    shown = describe_sample(dataset_of(golden, tmp_path, "Hi", "a dog. " * 600), 0, 576)
    assert shown.endswith("characters more)")
    assert len(shown) < 2200


def test_a_run_says_what_it_takes(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(golden)
    monkeypatch.setattr("llava.train.planning.memory.free_memory", lambda _: 6 * 2**20)
    argv = [*json.loads((golden / "viii_pretrain.json").read_text())["argv"], "--output_dir", str(tmp_path)]
    argv += ["--max_steps", "21", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    with caplog.at_level("INFO"):
        fit(assemble(*parse_arguments(argv)))
    said = caplog.text
    assert "24,832 of          24,832 parameters,   4 of   4 tensors, projector" in said
    assert "0 of       1,315,968 parameters,   0 of  39 tensors, language model" in said
    assert "in [[ ]] is what is learned" in said
    assert "0 of 4 layers recomputed" in said
    assert "in all" in said
    assert (
        "21 of 21 steps to go, 5 of all warm up; 2 samples a step (1 process x 1 x 2), 40 samples in all"
        in said
    )
    assert "s a step, 0.0 h to go" in said
    warnings = [each.getMessage() for each in caplog.records if "hardly fit" in each.getMessage()]
    assert len(warnings) == 1
    shutil.rmtree(tmp_path)


# ---- llava plan


@pytest.fixture
def without_weights(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden folder's configs, tokenizer and data, and no weight."""
    for name in ("weights", "train_data", "images"):
        ignore = shutil.ignore_patterns("*.safetensors", "*.bin")
        shutil.copytree(golden / name, tmp_path / name, ignore=ignore)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("run", "more"),
    [
        ("viii_lora", []),
        ("viii_lora", ["--bits", "4"]),
        ("viii_lora", ["--bits", "4", "--bf16", "True"]),
        ("viii_pretrain", []),
        ("viii_full", []),
    ],
)
def test_a_plan_without_weights_is_that_of_the_loaded_model(
    golden: Path, without_weights: Path, monkeypatch: pytest.MonkeyPatch, run: str, more: list[str]
) -> None:
    if more:
        pytest.importorskip("bitsandbytes")
    argv = [*json.loads((golden / f"{run}.json").read_text())["argv"], "--output_dir", "out", *more]
    planned = foresee_run(*parse_arguments([*argv, "--dry_run", "True"]))
    assert not (without_weights / "out").exists()
    monkeypatch.chdir(golden)
    made = assemble(*parse_arguments(argv))
    real = measure(made.model, device=torch.device("cpu"), autocast=made.training_args.autocast_dtype)
    sketched = planned.plan.footprint
    for field in fields(sketched):
        wanted = getattr(real, field.name)
        assert getattr(sketched, field.name) == pytest.approx(wanted, rel=0.02), field.name
    assert describe_trained(planned.model)[1:] == describe_trained(made.model)[1:]


def test_a_plan_says_steps_hours_and_what_would_fit(
    golden: Path, without_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*json.loads((golden / "viii_lora.json").read_text())["argv"], "--dry_run", "True"]
    argv += ["--max_steps", "-1", "--num_train_epochs", "3"]
    state = {"log_history": [{"samples_per_second": 2.0}, {"eval_loss": 1.0}, {"samples_per_second": 4.0}]}
    (without_weights / "trainer_state.json").write_text(json.dumps(state))
    train(argv=[*argv, "--gpu", "0.05GB", "--gpus", "2", "--rate", str(without_weights)])
    said = capsys.readouterr().out
    assert "78,080 of          78,080 parameters,  56 of  56 tensors, LoRA adapter" in said
    assert "18 steps of 8 samples (2 x 4); 48 samples in all" in said
    assert "2.1% of the samples are cut at 256 positions" in said
    assert "0.0 hours at 3 samples a second" in said
    assert "hardly fit" in said
    assert "--gradient_checkpointing True takes" in said
    train(argv=[*argv, "--gpu", "4090"])
    said = capsys.readouterr().out
    assert "of 24.0 GiB that are free" in said
    assert "data sheet's rate of RTX 4090" in said
    assert "hardly fit" not in said

    shared = [*argv, "--fsdp", "True", "--gpus", "2", "--gradient_checkpointing", "True"]
    train(argv=[*shared, "--gpu", "0.015GB"])
    assert "weights in one piece" in (said := capsys.readouterr().out)
    assert "zero3_offload.json without --fsdp takes" in said

    shutil.copyfile("train_data/train.json", "more.json")
    train(argv=[*argv, "--gpus", "1", "--data_path", "train_data/train.json:2", "more.json:0.5"])
    assert "90 steps of 4 samples (1 x 4); 120 samples in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--gpu", "big"], "unknown-gpu"),
        (["--rate", "fast"], "unknown-rate"),
        (["--rate", "0"], "unknown-rate"),
    ],
)
def test_a_plan_refuses_what_it_cannot_read(
    golden: Path, without_weights: Path, flags: list[str], code: str
) -> None:
    argv = [*json.loads((golden / "viii_lora.json").read_text())["argv"], "--dry_run", "True", *flags]
    with raises_code(code, SettingsError):
        train(argv=argv)
