"""Every flag of the original is accepted, and invalid flags are found before a weight is read."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.training_args import OptimizerNames

from llava.data.mixture import DataFile, data_files
from llava.errors import SettingsError
from llava.train.arguments import (
    HARMLESS_FLAGS,
    DataArguments,
    ModelArguments,
    Parsed,
    parse_arguments,
)
from llava.train.build import projector_file, template_of
from llava.train.checkpointing.settings import find_changes
from llava.train.flags import FREQUENT, LlavaTrainingFlags
from support.errors import raises_code


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.json"
    path.write_text("[]")
    return str(path)


def parse(data: str, *more: str) -> Parsed:
    return parse_arguments(["--data_path", data, "--output_dir", "out", "--report_to", "none", *more])


def parse_files(*names: str) -> Parsed:
    return parse(names[0], "--data_path", *names)


def test_defaults_are_the_originals(data: str) -> None:
    model, _, training = parse_arguments(["--data_path", data])
    assert (model.version, model.mm_projector_type, model.mm_vision_select_layer) == ("v0", "linear", -1)
    assert (model.mm_use_im_patch_token, model.mm_vision_select_feature) == (True, "patch")
    assert isinstance(training.optim, OptimizerNames)
    assert (training.model_max_length, training.optim.value, training.bits) == (512, "adamw_torch", 16)
    assert (training.lora_r, training.lora_alpha, training.lora_dropout) == (64, 16, 0.05)
    assert (training.remove_unused_columns, training.average_tokens_across_devices) == (False, False)
    assert training.report_to == ["tensorboard"]


def test_flags_that_transformers_dropped_still_work(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    old = ["--evaluation_strategy", "no", "--warmup_ratio", "0.03", "--group_by_length", "True", "--no_cuda"]
    old += ["--save_safetensors", "False", "--logging_dir", "logs", "--overwrite_output_dir", "True"]
    _, _, training = parse(data, *old)
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
def test_warmup_is_as_long_as_in_the_original(data: str, flags: list[str], steps: int) -> None:
    assert parse(data, *flags)[2].get_warmup_steps(100) == steps


def test_harmless_old_flags_are_accepted_with_a_warning(data: str, caplog: pytest.LogCaptureFixture) -> None:
    parse(data, *(f"--{name}" for name in HARMLESS_FLAGS))
    assert all(f"--{name} " in caplog.text for name in HARMLESS_FLAGS)


@pytest.mark.parametrize(("words", "value"), [([], True), (["True"], True), (["False"], False)])
def test_boolean_flags_take_a_value_or_none(data: str, words: list[str], value: bool) -> None:
    model, _, training = parse(
        data, "--gradient_checkpointing", *words, "--lora_enable", *words, "--freeze_backbone", *words
    )
    assert (training.gradient_checkpointing, training.lora_enable) == (value, value)
    assert (training.activation_checkpointing, model.freeze_backbone) == (value, value)


@pytest.mark.parametrize(
    ("flags", "code", "fact"),
    [
        (
            ["--learning_rat", "3", "--foo", "1"],
            "unknown-flag",
            "--learning_rat 3 --foo 1",
        ),
        (["--learning_rate", "x"], "invalid-flags", "invalid float value"),
        (["--foo", "1"], "unknown-flag", "--foo 1"),
        (["--lora_r", "many"], "invalid-flags", "'many'"),
        (["--bits", "4"], "invalid-flags", "--bits 4 without --lora_enable True"),
        (["--bits", "5"], "invalid-flags", "--bits 5: wanted 4, 8 or 16"),
        (["--quant_type", "int4"], "invalid-flags", "--quant_type int4: wanted fp4 or nf4"),
        (
            ["--lora_enable", "--tune_mm_mlp_adapter"],
            "invalid-flags",
            "--lora_enable and --tune_mm_mlp_adapter",
        ),
        (
            ["--tune_mm_mlp_adapter", "--freeze_mm_mlp_adapter"],
            "invalid-flags",
            "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter",
        ),
        (
            ["--freeze_mm_mlp_adapter", "--mm_projector_lr", "1e-5"],
            "invalid-flags",
            "--mm_projector_lr and --freeze_mm_mlp_adapter",
        ),
        (
            ["--group_by_length", "--group_by_modality_length"],
            "invalid-flags",
            "--group_by_length and --group_by_modality_length",
        ),
        (["--lora_bias", "some"], "invalid-flags", "--lora_bias some: wanted none, all, lora_only"),
        (["--lora_enable", "--lora_r", "0"], "invalid-flags", "--lora_r 0"),
        (["--model_max_length", "1"], "invalid-flags", "--model_max_length 1"),
        (["--remove_unused_columns", "True"], "invalid-flags", "--remove_unused_columns True"),
        (["--per_device_train_batch_size", "0"], "invalid-flags", "--per_device_train_batch_size 0"),
        (["--gradient_accumulation_steps", "0"], "invalid-flags", "--gradient_accumulation_steps 0"),
        (["--evaluation_strategy", "steps"], "invalid-flags", "--evaluation_strategy steps"),
        (["--fsdp", "True"], "invalid-flags", "--fsdp: shares out a model among processes"),
        (["--fsdp", "full_shard", "--optim", "adafactor"], "invalid-flags", "--optim adafactor with --fsdp"),
        (["--fsdp_config", '{"version": 2}'], "invalid-flags", "--fsdp_config without --fsdp True"),
        (["--fsdp", "--use_dora", "True"], "invalid-flags", "--use_dora True with --deepspeed, --fsdp"),
        (["--image_aspect_ratio", "anyres"], "invalid-flags", "--image_aspect_ratio anyres"),
        (
            ["--image_aspect_ratio", "padd"],
            "invalid-flags",
            "padd: wanted square or pad",
        ),
        (["--mm_vision_select_feature", "cls"], "invalid-flags", "--mm_vision_select_feature cls"),
        (["--label_smoothing_factor", "0.1"], "invalid-flags", "--label_smoothing_factor 0.1"),
        (["--push_to_hub", "True"], "invalid-flags", "wanted --hub_model_id OWNER/NAME"),
        (["--push_to_hub", "True", "--hub_model_id", "name"], "invalid-flags", "OWNER/NAME, found name"),
        (["--hub_strategy", "all_checkpoints"], "invalid-flags", "llava push"),
        (["--hub_token", "hf_secret"], "invalid-flags", "--hub_token: flags are logged"),
        (["--optim", "galore_adamw"], "invalid-flags", "--optim galore_adamw"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "invalid-flags", "--lr_scheduler_kwargs"),
        (["--lr_scheduler_kwargs", "{bad"], "invalid-flags", ""),
        (["--gradient_checkpointing_kwargs", "x"], "invalid-flags", "wanted a JSON object"),
        (["--dataloader_persistent_workers", "True"], "invalid-flags", "--dataloader_num_workers"),
        (["--save_steps", "inf"], "invalid-flags", ""),
        (["--image_folder", "none"], "invalid-flags", "--image_folder none"),
        (["--deepspeed", "none.json"], "invalid-flags", "--deepspeed"),
        (["--resume_from_checkpoint", "none"], "invalid-flags", "--resume_from_checkpoint none"),
        (["--report_to", "nowhere"], "invalid-flags", "--report_to nowhere"),
        (["--lr_scheduler_type", "wavy"], "invalid-flags", "lr_scheduler_type"),
        (["--logging_steps", "0"], "invalid-flags", "logging_steps"),
    ],
)
def test_invalid_flags_are_reported_on_one_line(data: str, flags: list[str], code: str, fact: str) -> None:
    with raises_code(code, SettingsError) as error:
        parse(data, *flags)
    assert fact in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("learning_rate", "0", ("-1", "nan", "inf")),
        ("mm_projector_lr", "0", ("-1", "nan")),
        ("num_train_epochs", "0.5", ("0", "-1", "nan")),
        ("max_steps", "-1", ("0", "-2")),
        ("warmup_ratio", "1", ("3", "-0.1", "nan")),
        ("warmup_steps", "0", ("-1",)),
        ("weight_decay", "0", ("-1", "nan")),
        ("max_grad_norm", "0", ("-1", "nan")),
        ("adam_beta1", "0", ("1", "-1")),
        ("adam_beta2", "0.95", ("1", "nan")),
        ("adam_epsilon", "1e-6", ("0", "-1")),
        ("lora_r", "1", ("0", "-8")),
        ("lora_alpha", "1", ("0", "-8")),
        ("lora_dropout", "0", ("1", "-0.1")),
        ("gradient_accumulation_steps", "1", ("0",)),
        ("per_device_train_batch_size", "1", ("0", "-1")),
        ("dataloader_num_workers", "0", ("-1",)),
        ("save_total_limit", "0", ("-1",)),
        ("save_minutes", "0", ("-1", "nan")),
        ("seed", "0", ("-1", "4294967296")),
        ("data_seed", "0", ("-1",)),
        ("held_out", "0", ("1", "-0.1", "nan")),
    ],
)
def test_numbers_out_of_range_are_refused(data: str, name: str, good: str, bad: tuple[str, ...]) -> None:
    parse(data, f"--{name}={good}")
    for value in bad:
        with raises_code("invalid-flags", SettingsError) as error:
            parse(data, f"--{name}={value}")
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (["True"], "auto"),
        (["true"], "auto"),
        (["auto"], "auto"),
        ([], "auto"),
        (["False"], "never"),
        (["never"], "never"),
    ],
)
def test_resuming_is_also_asked_for_as_in_transformers_scripts(
    data: str, words: list[str], meaning: str
) -> None:
    asked = ["--resume_from_checkpoint", *words] if words else []
    assert parse(data, *asked)[2].resume_from_checkpoint == meaning


def test_help_explains_llavas_flags_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert text.index("--lora_r ") < text.index("--learning_rate ")
    assert len(text.splitlines()) < 250
    explained = {line.split()[0][2:] for line in text.splitlines() if line.startswith("  --")}
    listed = {word.strip(" ,") for line in text.splitlines() if "," in line for word in line.split()}
    for kind in (ModelArguments, DataArguments, LlavaTrainingFlags):
        assert {flag.name for flag in fields(kind) if flag.init} <= explained | listed


def test_help_tells_transformers_defaults() -> None:
    defaults = {flag.name: flag.default for flag in fields(transformers.TrainingArguments)}
    assert {name: default for name, (default, _) in FREQUENT.items()} == {
        name: defaults[name] for name in FREQUENT
    }


def test_paths_written_differently_are_the_same_setting(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = parse("data.json")[2].learned_from
    here = parse(data)[2].learned_from
    monkeypatch.chdir("/")
    elsewhere = parse(data)[2].learned_from
    assert find_changes(there, here) == find_changes(there, elsewhere) == find_changes(here, there) == []
    other = tmp_path / "other.json"
    other.write_text("[]")
    assert find_changes(there, parse(str(other))[2].learned_from) == ["data_path"]

    both = parse_files(f"{data}:2", str(other))[2].learned_from
    monkeypatch.chdir(tmp_path)
    assert find_changes(both, parse_files("data.json:2.0", "other.json")[2].learned_from) == []
    for names in (["data.json:0.5", "other.json"], ["data.json", "other.json"], ["other.json", data + ":2"]):
        assert find_changes(both, parse_files(*names)[2].learned_from) == ["data_path"]
    assert "data_path" in find_changes(there, parse("data.json:2")[2].learned_from)
    assert "data_path" in find_changes(there, both)


def test_data_files_have_weights_and_may_have_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b:2", "c:x.json"):
        Path(name).write_text("[]")
    parsed = parse_files("a.json:2", "b:2", "c:x.json:0.5")[1]
    assert data_files(parsed.data_path or "") == [
        DataFile("a.json", 2),
        DataFile("b:2"),
        DataFile("c:x.json", 0.5),
    ]
    assert DataArguments(data_path=["a.json"]).data_path == parse("a.json")[1].data_path == "a.json"


@pytest.mark.parametrize(
    ("names", "fact"),
    [
        (["data.json:0"], "data.json:0: wanted a weight"),
        (["data.json:-1"], "data.json:-1: wanted a weight"),
        (["data.json:nan"], "data.json:nan: wanted a weight"),
        (["data.json:inf"], "data.json:inf: wanted a weight"),
        (["data.json:1e9"], "data.json:1000000000: wanted a weight"),
        (["data.json", "none.json:2"], "none.json: no such file"),
        (["data.json:much"], "data.json:much: no such file"),
        (["data.json:"], "data.json:: no such file"),
        (["data.json", "./data.json:2"], "./data.json: is given twice"),
    ],
)
def test_data_files_and_weights_that_cannot_be_used_are_named(
    data: str, monkeypatch: pytest.MonkeyPatch, names: list[str], fact: str
) -> None:
    monkeypatch.chdir(Path(data).parent)
    with raises_code("invalid-flags", SettingsError) as error:
        parse_files(*names)
    assert f"--data_path {fact}" in str(error.value)
    assert "\n" not in str(error.value)


def test_all_invalid_flags_are_reported_at_once(data: str) -> None:
    with raises_code("invalid-flags") as error:
        parse(data + "x", "--bits", "5", "--group_by_length", "--group_by_modality_length")
    for fact in (f"--data_path {data}x", "--bits 5", "--group_by_length and --group_by_modality_length"):
        assert fact in str(error.value)
    # Also those about this machine, at which transformers would stop.
    wrong = ["--report_to", "nowhere", "--use_cpu", "--fp16", "--deepspeed", "scripts/zero2.json"]
    with raises_code("invalid-flags") as error:
        parse(data, *wrong, "--mm_projector_type", "mlp", "--lora_dropout", "1.5")
    for fact in (
        "--report_to nowhere",
        "--fp16 True",
        "--deepspeed",
        "--mm_projector_type mlp:",
        "--lora_dropout 1.5:",
    ):
        assert fact in str(error.value)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch has the older flag alone")
def test_tf32_is_on_by_both_of_pytorchs_flags(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backends: Any = torch.backends
    enable_tf32 = transformers.utils.import_utils.enable_tf32
    monkeypatch.setattr("llava.train.arguments.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    enable_tf32.cache_clear()
    try:
        parse(data, "--tf32", "True")
        assert backends.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        enable_tf32.cache_clear()
        backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests machines without a GPU")
def test_training_falls_back_to_the_cpu_without_a_gpu(data: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        _, _, training = parse(data, "--bf16", "True", "--tf32", "True")
    assert (training.use_cpu, training.bf16, training.tf32) == (True, True, None)
    assert training.compute_dtype == torch.bfloat16
    assert "training on the CPU" in caplog.text
    assert "--tf32 True" in caplog.text
    with raises_code("invalid-flags") as error:
        parse(data, "--fp16", "True")
    assert "--fp16 True" in str(error.value)


@pytest.mark.parametrize(
    "version", ["v0", "v0.5", "v1", "plain", "llama_2", "mpt", "vicuna_v1", "llava_llama_2"]
)
def test_the_versions_of_the_original_are_known(version: str) -> None:
    assert template_of(version).roles


def test_an_unknown_version_is_refused() -> None:
    with raises_code("unknown-template", SettingsError):
        template_of("v2")


@pytest.mark.parametrize("name", ["mm_projector.bin", "mm_projector.safetensors"])
def test_a_projector_file_that_is_missing_is_not_looked_for_as_a_model(name: str, tmp_path: Path) -> None:
    with raises_code("missing-projector") as error:
        projector_file(str(tmp_path / name))
    assert f"{name}: no such file (--pretrain_mm_mlp_adapter)" in str(error.value)
