"""Every command answers `--help`; tests/golden/test_compat.py has the names that other code imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llava.cli import COMMANDS

# These take seconds to import. A reader of --help need not wait for them.
HEAVY = {"torch", "transformers", "pyarrow", "pandas", "scipy"}

PROGRAMS = [
    *(["-m", "llava.cli", command] for command in COMMANDS),
    ["-m", "llava.eval.model_vqa"],
    ["-m", "llava.eval.model_vqa_loader"],
    ["-m", "llava.eval.model_vqa_mmbench"],
    ["-m", "llava.eval.model_vqa_science"],
    ["-m", "llava.model.apply_delta"],
    ["-m", "llava.model.consolidate"],
    ["-m", "llava.model.make_delta"],
    ["llava/eval/eval_pope.py"],
    ["llava/eval/eval_science_qa.py"],
    ["llava/eval/eval_textvqa.py"],
    ["llava/train/train.py"],
    ["llava/train/train_mem.py"],
    ["llava/train/launch.py", "2"],
    ["playground/demo/generate.py"],
    ["scripts/convert_gqa_for_eval.py"],
    ["scripts/convert_mmbench_for_submission.py"],
    ["scripts/convert_mmvet_for_eval.py"],
    ["scripts/convert_seed_for_submission.py"],
    ["scripts/convert_vizwiz_for_submission.py"],
    ["scripts/convert_vqav2_for_submission.py"],
    ["scripts/extract_mm_projector.py"],
    ["scripts/merge_lora_weights.py"],
]


@pytest.mark.parametrize("command", PROGRAMS, ids=" ".join)
def test_every_command_answers_help_at_once(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "site" in imported  # the list is read right
    assert not imported & HEAVY
