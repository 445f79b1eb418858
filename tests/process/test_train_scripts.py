"""The training scripts: published settings, real runs on tiny weights, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.arguments import parse_arguments
from llava.train.launch import Machine, plan_launch
from support.tiers import exhaustive
from support.warm_python import warm_python

SCRIPTS = [
    "pretrain",
    "finetune",
    "finetune_lora",
    "finetune_lora_dataengine",
    "finetune_task",
    "finetune_task_lora",
]
# base, learning rate, batch, save steps, output folder; source: the original's scripts/v1_5.
PUBLISHED = {
    "pretrain": ("lmsys/vicuna-13b-v1.5", 1e-3, 32, 24000, "./checkpoints/llava-v1.5-13b-pretrain"),
    "finetune": ("lmsys/vicuna-13b-v1.5", 2e-5, 16, 50000, "./checkpoints/llava-v1.5-13b"),
    "finetune_lora": ("lmsys/vicuna-13b-v1.5", 2e-4, 16, 50000, "./checkpoints/llava-v1.5-13b-lora"),
    "finetune_lora_dataengine": (
        *("lmsys/vicuna-7b-v1.5", 1e-4, 16, 50000),
        "./checkpoints/llava-v1.5-7b-lora-dataengine",
    ),
    "finetune_task": ("liuhaotian/llava-v1.5-13b", 2e-5, 16, 50000, "./checkpoints/llava-v1.5-13b-task"),
    "finetune_task_lora": (
        *("liuhaotian/llava-v1.5-13b", 2e-4, 16, 50000),
        "./checkpoints/llava-v1.5-13b-task-lora",
    ),
}
TINY = [
    "--per_device_train_batch_size",
    "2",
    "--max_steps",
    "2",
    "--model_max_length",
    "256",
    "--lora_r",
    "8",
]


def environment(golden: Path, **settings: str) -> dict[str, str]:
    """Tiny weights for a script; nothing of the caller's launcher or settings."""
    ours = {
        "PYTHON_EXEC": warm_python(),
        "PYTHON": warm_python(),
        "DATA_PATH": str(golden / "train_data/train.json"),
    }
    ours |= {"IMAGE_FOLDER": str(golden / "images")}
    gone = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MODEL", "PROJECTOR", "OUTPUT_DIR", "NPROC"}
    gone |= {"CUDA_VISIBLE_DEVICES", "VISION_TOWER", "PER_DEVICE_BATCH", "GRADIENT_ACCUMULATION"}
    gone |= {"NNODES", "NODE_RANK", "HOSTFILE"}
    return {**{key: value for key, value in os.environ.items() if key not in gone}, **ours, **settings}


def tiny(golden: Path, output: Path, **settings: str) -> dict[str, str]:
    weights = golden / "weights"
    return environment(
        golden,
        MODEL=str(weights / "tiny-vicuna-v1.5"),
        VISION_TOWER=str(weights / "tiny-clip-vit-patch14-56"),
        PROJECTOR=str(weights / "tiny-pretrain" / "mm_projector.bin"),
        OUTPUT_DIR=str(output),
        **settings,
    )


def run_script(
    repo: Path, name: str, env: dict[str, str], *more: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(repo / "scripts" / "v1_5" / f"{name}.sh"), *more]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=600)


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_asks_for_the_published_settings(
    repo: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Stands in for Python: writes down its arguments, which are then planned and parsed for real.
    recorder = tmp_path / "python"
    recorder.write_text(
        '#!/usr/bin/env bash\nprintf "%s\\0" "$@" > "$FLAGS"\n'
        "[[ $PYTORCH_ALLOC_CONF == expandable_segments:True ]]\n"
    )
    recorder.chmod(0o755)
    written = tmp_path / "flags"
    env = environment(golden, PYTHON=str(recorder), FLAGS=str(written))
    result = run_script(repo, name, env, "--lora_dropout", "0.5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    monkeypatch.chdir(tmp_path)
    _, module, stage, *flags = written.read_text().split("\0")[:-1]
    assert module == "llava.train.launch"
    launch = plan_launch(stage, flags, {}, Machine(0, has_deepspeed=False))
    assert launch.arguments[0].endswith("train_mem.py")
    model, data, training = parse_arguments(launch.arguments[1:])

    lora = name in ("finetune_lora", "finetune_lora_dataengine", "finetune_task_lora")
    is_pretrain = name == "pretrain"
    found = (model.model_name_or_path, training.learning_rate, training.per_device_train_batch_size)
    assert (*found, training.save_steps, training.output_dir) == PUBLISHED[name]
    assert model.vision_tower == "openai/clip-vit-large-patch14-336"
    assert (model.mm_vision_select_layer, model.mm_projector_type) == (-2, "mlp2x_gelu")
    assert (model.mm_use_im_start_end, model.mm_use_im_patch_token) == (False, False)
    assert (model.version, model.tune_mm_mlp_adapter) == (("plain", True) if is_pretrain else ("v1", False))
    assert data.image_aspect_ratio == ("square" if is_pretrain else "pad")
    assert training.group_by_modality_length is not is_pretrain
    assert (training.num_train_epochs, training.weight_decay, training.warmup_steps) == (1, 0.0, 0.03)
    assert (training.lr_scheduler_type.value, training.save_total_limit) == ("cosine", 1)
    assert (training.model_max_length, training.bf16, training.logging_steps) == (2048, True, 1)
    assert (training.gradient_checkpointing, training.dataloader_num_workers) == (True, 4)
    assert training.lora_enable is lora
    if lora:
        assert (training.lora_r, training.lora_alpha, training.mm_projector_lr) == (128, 256, 2e-5)
    assert training.lora_dropout == 0.5  # flags after the script's name win
    size = "7b" if "dataengine" in name else "13b"
    published = f"liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-{size}-v1.5"
    starts_from_projector = name in ("finetune", "finetune_lora", "finetune_lora_dataengine")
    assert model.pretrain_mm_mlp_adapter == (published if starts_from_projector else None)


def test_zero_settings_leave_optimizer_and_schedule_to_the_flags(repo: Path) -> None:
    for stage in ("zero2", "zero3", "zero3_offload"):
        settings = json.loads((repo / "scripts" / f"{stage}.json").read_text())
        assert not {"optimizer", "scheduler"} & set(settings)
        assert settings["zero_optimization"]["stage"] == int(stage[4])
        assert settings["fp16"]["initial_scale_power"] == 16
        if stage != "zero2":
            assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_the_shell_code_is_clean(repo: Path) -> None:
    scripts = sorted(str(path) for path in (repo / "scripts" / "v1_5").glob("*.sh"))
    assert len(scripts) == 9
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.is_file():
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, "-x", *scripts], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "files"),
    [
        ("pretrain", None, {"mm_projector.bin", "config.json"}),
        exhaustive("finetune", "3", {"model.safetensors", "config.json", "tokenizer.model"}),
        (
            "finetune_lora_dataengine",
            None,
            {"adapter_model.safetensors", "non_lora_trainables.bin", "config.json"},
        ),
    ],
)
def test_a_script_trains(
    repo: Path, golden: Path, tmp_path: Path, name: str, stage: str | None, files: set[str]
) -> None:
    """In one process, or with its ZeRO stage in two."""
    env = tiny(golden, tmp_path / "out")
    if name == "pretrain":
        env["DATA_PATH"] = str(golden / "train_data/pretrain.json")
    more = [*TINY, "--save_steps", "1"]
    if stage:
        pytest.importorskip("deepspeed")
        env["NPROC"] = "2"
        more += ["--deepspeed", str(repo / "scripts" / f"zero{stage}.json"), "--dataloader_num_workers", "0"]
    result = run_script(repo, name, env, *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        assert files | {"trainer_state.json"} <= {path.name for path in folder.iterdir()}
        assert name == "finetune" or not (folder / "model.safetensors").exists()
    assert len(losses(tmp_path / "out")) == 2
    assert all(7 < loss < 9 for loss in losses(tmp_path / "out"))


@pytest.mark.slow
def test_bad_input_ends_a_script_with_one_line_and_2(repo: Path, golden: Path, tmp_path: Path) -> None:
    env = tiny(golden, tmp_path / "out", DATA_PATH="none.json")
    result = run_script(repo, "finetune", env, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == "error: --data_path none.json: no such file"
    assert "Traceback" not in result.stderr
