"""The public names that other code imports stay, and every command answers `--help`."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

# Names that evaluation suites, forks and notebooks import from the original LLaVA.
PUBLIC_NAMES = {
    "llava.constants": [
        "CONTROLLER_HEART_BEAT_EXPIRATION",
        "DEFAULT_IMAGE_PATCH_TOKEN",
        "DEFAULT_IMAGE_TOKEN",
        "DEFAULT_IM_END_TOKEN",
        "DEFAULT_IM_START_TOKEN",
        "IGNORE_INDEX",
        "IMAGE_PLACEHOLDER",
        "IMAGE_TOKEN_INDEX",
        "LOGDIR",
        "WORKER_HEART_BEAT_INTERVAL",
    ],
    "llava.conversation": ["Conversation", "SeparatorStyle", "conv_templates", "default_conversation"],
    "llava.eval.run_llava": ["eval_model"],
    "llava.mm_utils": [
        "KeywordsStoppingCriteria",
        "divide_to_patches",
        "expand2square",
        "get_anyres_image_grid_shape",
        "get_model_name_from_path",
        "load_image_from_base64",
        "process_anyres_image",
        "process_images",
        "resize_and_pad_image",
        "select_best_resolution",
        "tokenizer_image_token",
    ],
    "llava.model": ["LlavaConfig", "LlavaLlamaForCausalLM"],
    "llava.model.builder": ["load_pretrained_model"],
    "llava.model.language_model.llava_llama": ["LlavaConfig", "LlavaLlamaForCausalLM"],
    "llava.train.train": [
        "DataArguments",
        "DataCollatorForSupervisedDataset",
        "LazySupervisedDataset",
        "ModelArguments",
        "TrainingArguments",
        "train",
    ],
    "llava.utils": ["build_logger", "disable_torch_init"],
}

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
    ["-m", "llava.model.consolidate"],
    ["-m", "llava.report"],
    ["-m", "llava.serve.cli"],
    ["llava/eval/eval_pope.py"],
    ["llava/eval/eval_science_qa.py"],
    ["llava/eval/eval_textvqa.py"],
    ["llava/train/train.py"],
    ["llava/train/train_mem.py"],
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


@pytest.mark.parametrize("module", PUBLIC_NAMES)
def test_public_names_stay(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in PUBLIC_NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_answers_help(command: list[str]) -> None:
    result = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
