"""Every flag of the original is understood, and contradictions are found before a weight is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers.training_args import OptimizerNames

from llava.errors import SettingsError
from llava.train.arguments import HARMLESS_FLAGS, Parsed, parse_arguments
from llava.train.build import template_of
from support.errors import raises_code


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.json"
    path.write_text("[]")
    return str(path)


def parsed(data: str, *more: str) -> Parsed:
    return parse_arguments(["--data_path", data, "--output_dir", "out", "--report_to", "none", *more])


def test_defaults_are_the_originals(data: str) -> None:
    model, _, training = parse_arguments(["--data_path", data])
    assert (model.version, model.mm_projector_type, model.mm_vision_select_layer) == ("v0", "linear", -1)
    assert (model.mm_use_im_patch_token, model.mm_vision_select_feature) == (True, "patch")
    assert isinstance(training.optim, OptimizerNames)
    assert (training.model_max_length, training.optim.value, training.bits) == (512, "adamw_torch", 16)
    assert (training.lora_r, training.lora_alpha, training.lora_dropout) == (64, 16, 0.05)
    assert (training.remove_unused_columns, training.average_tokens_across_devices) == (False, False)
    assert training.report_to == ["tensorboard"]


def test_names_that_transformers_dropped_still_work(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    old = ["--evaluation_strategy", "no", "--warmup_ratio", "0.03", "--group_by_length", "True", "--no_cuda"]
    old += ["--save_safetensors", "False", "--logging_dir", "logs", "--overwrite_output_dir", "True"]
    _, _, training = parsed(data, *old)
    assert training.eval_strategy.value == "no"
    assert training.get_warmup_steps(1000) == 30
    assert training.train_sampling_strategy == "group_by_length"
    assert training.use_cpu is True
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--warmup_ratio", "1.0"], 100),
        (["--warmup_ratio", "0.03"], 3),
        (["--warmup_ratio", "0.031"], 4),
        (["--warmup_ratio", "0.5", "--warmup_steps", "7"], 7),
        ([], 0),
    ],
)
def test_a_warm_up_is_as_long_as_it_was(data: str, flags: list[str], steps: int) -> None:
    assert parsed(data, *flags)[2].get_warmup_steps(100) == steps


def test_flags_without_meaning_today_are_accepted_and_said(
    data: str, caplog: pytest.LogCaptureFixture
) -> None:
    parsed(data, *(f"--{name}" for name in HARMLESS_FLAGS))
    assert all(f"--{name} has no effect any more" in caplog.text for name in HARMLESS_FLAGS)


@pytest.mark.parametrize(("words", "value"), [([], True), (["True"], True), (["False"], False)])
def test_booleans_are_bare_or_words(data: str, words: list[str], value: bool) -> None:
    model, _, training = parsed(
        data, "--gradient_checkpointing", *words, "--lora_enable", *words, "--freeze_backbone", *words
    )
    assert (training.gradient_checkpointing, training.lora_enable) == (value, value)
    assert (training.activation_checkpointing, model.freeze_backbone) == (value, value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "x", "--foo", "1"], "invalid float value|unknown flags"),
        (["--foo", "1"], "unknown flags: --foo 1"),
        (["--lora_r", "many"], "--lora_r.*invalid int value: 'many'"),
        (["--bits", "4"], "--bits 4 without --lora_enable True"),
        (["--bits", "5"], "--bits 5: wanted 4, 8 or 16"),
        (["--quant_type", "int4"], "--quant_type int4: wanted fp4 or nf4"),
        (["--lora_enable", "--tune_mm_mlp_adapter"], "--lora_enable and --tune_mm_mlp_adapter"),
        (["--tune_mm_mlp_adapter", "--freeze_mm_mlp_adapter"], "leave nothing to train"),
        (["--freeze_mm_mlp_adapter", "--mm_projector_lr", "1e-5"], "--mm_projector_lr for a projector that"),
        (["--group_by_length", "--group_by_modality_length"], "choose one"),
        (["--lora_bias", "some"], "--lora_bias some: wanted none, all, lora_only"),
        (["--lora_enable", "--lora_r", "0"], "--lora_r 0"),
        (["--model_max_length", "1"], "--model_max_length 1"),
        (["--remove_unused_columns", "True"], "would drop every image"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: wanted 1 or more"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: wanted 1 or more"),
        (["--evaluation_strategy", "steps"], "--evaluation_strategy steps: there is no data to evaluate on"),
        (["--fsdp", "full_shard"], "--fsdp: is not tested here; --deepspeed scripts/zero3.json"),
        (["--image_aspect_ratio", "anyres"], "tiles cannot be trained on"),
        (["--image_folder", "none"], "--image_folder none: no such folder"),
        (["--deepspeed", "none.json"], "--deepspeed"),
        (["--resume_from_checkpoint", "none"], "wanted auto, never, or the folder"),
        (
            ["--report_to", "nowhere"],
            "--report_to nowhere: not installed; pip install nowhere, or choose from: ",
        ),
        (["--lr_scheduler_type", "wavy"], "lr_scheduler_type"),
        (["--logging_steps", "0"], "logging_steps"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(data: str, flags: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parsed(data, *flags)
    assert "\n" not in str(caught.value)


def test_all_contradictions_are_said_at_once(data: str) -> None:
    with pytest.raises(SettingsError, match=r"no such file.*--bits 5.*choose one"):
        parsed(data + "x", "--bits", "5", "--group_by_length", "--group_by_modality_length")
    # Those about this machine, too, which transformers would stop at.
    wrong = ["--report_to", "nowhere", "--use_cpu", "--fp16", "--deepspeed", "scripts/zero2.json"]
    with pytest.raises(SettingsError) as caught:
        parsed(data, *wrong, "--mm_projector_type", "mlp", "--lora_dropout", "1.5")
    for part in (
        "--report_to nowhere",
        "--fp16 True needs",
        "--deepspeed",
        "--mm_projector_type mlp:",
        "--lora_dropout 1.5:",
    ):
        assert part in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_training_moves_to_the_cpu_and_says_so(
    data: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _, _, training = parsed(data, "--bf16", "True", "--tf32", "True")
    assert (training.use_cpu, training.bf16, training.tf32) == (True, True, None)
    assert training.compute_dtype == torch.bfloat16
    assert "no GPU found" in caplog.text
    assert "--tf32 True ignored" in caplog.text
    with pytest.raises(SettingsError, match="--fp16 True needs a GPU"):
        parsed(data, "--fp16", "True")


@pytest.mark.parametrize(
    "version", ["v0", "v0.5", "v1", "plain", "llama_2", "mpt", "vicuna_v1", "llava_llama_2"]
)
def test_the_originals_versions_are_known(version: str) -> None:
    assert template_of(version).roles


def test_an_unknown_version_is_not_taken_for_another() -> None:
    with raises_code("unknown-template", SettingsError):
        template_of("v2")
