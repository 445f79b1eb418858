"""scripts/v1_5/dataengine_round.sh: from bad cases to a scored model, in one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llava.files import read_json, read_jsonl
from support.warm_python import warm_python

SETTINGS = {
    "SEED": "3",
    "SHARDS": "1",
    "MODEL": "playground/demo/model",
    "VISION_TOWER": "playground/demo/tower",
    "PER_DEVICE_BATCH": "4",
    "ROUND_SETTINGS": "requests=12",
    "MIX_FLAGS": "--modes mc --replay 1",
    "TRAIN_FLAGS": "--bf16 False --gradient_checkpointing False --dataloader_num_workers 0 --report_to none"
    " --max_steps 1 --lora_r 4",
    "CUDA_VISIBLE_DEVICES": "",
}


def test_one_command_takes_a_model_through_a_round(repo: Path, tmp_path: Path) -> None:
    data, rounds = tmp_path / "data", tmp_path / "rounds"
    sizes = ["--engine", "0", "--base", "40", "--heldout", "6", "--rounds", "20"]
    make = [sys.executable, "playground/demo/generate.py", "--root", str(data), *sizes]
    subprocess.run(make, cwd=repo, check=True)
    images = data / "demo/rounds"
    settings = SETTINGS | {
        "PYTHON": warm_python(),
        "WORK": str(tmp_path),
        "EVAL_ROOT": str(data / "eval"),
        "DATA_PATH": str(data / "llava_v1_5_mix665k.json"),
        "IMAGE_FOLDER": str(data),
        "REQUEST_FLAGS": f"--images {images} --scenes {images}.scenes.jsonl --attach-image --questions 2",
    }
    command = [sys.executable, "playground/demo/provider.py", "--data", str(data), "--mistakes", "0.2", "--"]
    command += ["bash", "scripts/v1_5/dataengine_round.sh"]
    result = subprocess.run(
        command, cwd=repo, env=os.environ | settings, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-3000:]
    accepted = [row for _, row in read_jsonl(rounds / "1/accepted.jsonl")]
    requests = {row["id"] for _, row in read_jsonl(rounds / "1/requests.jsonl")}
    assert len(requests) == 12
    assert accepted
    assert {row["request"] for row in accepted} <= requests
    (first,) = read_json(rounds / "summary.json")["rounds"]
    split = read_json(rounds / "split.json")
    assert first["arms"]["guided"]["n"] == len(split["parts"]["holdout"])


def test_missing_packages_are_named_before_the_first_step(repo: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", "scripts/v1_5/dataengine_round.sh"],
        cwd=repo,
        env=os.environ | {"PYTHON": str(python), "WORK": str(tmp_path / "work")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install -e '.[engine]'" in result.stderr
    assert not (tmp_path / "work").exists()
