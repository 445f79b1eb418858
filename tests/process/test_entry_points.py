"""Every command answers `--help`; tests/golden/test_compat.py has the names that other code imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = [
    ["-m", "llava.benchmarks"],
    ["-m", "llava.data_engine"],
    ["-m", "llava.eval"],
    ["-m", "llava.eval.model_vqa"],
    ["-m", "llava.eval.model_vqa_loader"],
    ["-m", "llava.eval.model_vqa_mmbench"],
    ["-m", "llava.eval.model_vqa_science"],
    ["-m", "llava.eval.run_llava"],
    ["-m", "llava.layout"],
    ["-m", "llava.model.apply_delta"],
    ["-m", "llava.model.consolidate"],
    ["-m", "llava.model.make_delta"],
    ["-m", "llava.report"],
    ["-m", "llava.serve.cli"],
    ["-m", "llava.serve.web"],
    ["llava/eval/eval_pope.py"],
    ["llava/eval/eval_science_qa.py"],
    ["llava/eval/eval_textvqa.py"],
    ["llava/train/train.py"],
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


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_answers_help(command: list[str]) -> None:
    result = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
