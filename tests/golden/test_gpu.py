"""What has to hold on a GPU as on a CPU: packing, resuming with its random numbers, quantised weights.

Each test runs on the CPU as well, so that its own code is tried where there is no GPU.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.infer.engine.engine import Engine
from llava.infer.engine.load import load
from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model.builder import load_pretrained_model
from llava.model.packed_attention import enable_packing
from llava.model.recipe import Recipe
from llava.train.train import train
from support import tiny_checkpoints as tiny
from support.batches import batch, learned
from support.training_processes import equal_bits, recorded_flags, trained_weights

HAS_GPU = torch.cuda.is_available()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
# Of a gradient's norm in bfloat16: on a CPU rounding moves it by 0.007, one label less by 0.18.
ROUNDING = 0.03


@pytest.fixture(autouse=True)
def in_golden_folder(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded flags and the golden configs name files from there."""
    monkeypatch.chdir(golden)


@on_each_device
def test_a_packed_batch_teaches_what_the_padded_one_does(device: str, golden: Path) -> None:
    model = load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device=device, dtype="float32"
    )[1].train()
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    inputs = {
        name: each.to(device) for name, each in batch((40, 5), (25, None), (33, 30), (18, None)).items()
    }
    recipe = Recipe(pack=True, sparse_loss=True, skip_blank_images=True)
    with torch.autocast(device, torch.bfloat16):
        padded = learned(model, inputs)
        enable_packing(model.config)
        packed = learned(model, {**inputs, "recipe": recipe})
    assert packed[0] == pytest.approx(padded[0], rel=2e-3)
    assert packed[1].keys() == padded[1].keys()
    for name, gradient in padded[1].items():
        assert (packed[1][name] - gradient).norm() <= ROUNDING * gradient.norm(), name


def losses_of(output: Path) -> list[float]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


@on_each_device
def test_a_run_is_resumed_with_the_devices_random_numbers(device: str, golden: Path, tmp_path: Path) -> None:
    """Dropout draws from the device's own generator: its state has to be in the checkpoint."""
    more = ["--max_steps", "4", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    more += ["--lora_dropout", "0.3", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "2"]
    more += ["--use_cpu", str(device == "cpu"), "--dataloader_num_workers", "0"]
    argv = [*recorded_flags(golden, "lora"), *more]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(argv=[*argv, "--output_dir", str(whole)])
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    train(argv=[*argv, "--output_dir", str(cut)])
    states = torch.load(whole / "checkpoint-2/rng_state.pth", weights_only=False)
    assert device in states
    assert len(losses_of(cut)) == 4
    if device == "cpu":
        assert losses_of(cut) == losses_of(whole)
        assert equal_bits(cut, whole)
        return
    # A GPU sums some gradients in no fixed order.
    assert losses_of(cut) == pytest.approx(losses_of(whole), rel=1e-4)
    ours, theirs = trained_weights(cut), trained_weights(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-5, rtol=1e-3, msg=name)


@on_each_device
@pytest.mark.parametrize(("setting", "layer"), [("load_4bit", "Linear4bit"), ("load_8bit", "Linear8bitLt")])
def test_quantised_weights_are_loaded_and_answer(device: str, setting: str, layer: str, golden: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings: Any = {setting: True, "dtype": "float32" if device == "cpu" else "float16"}
    folders = (str(golden / tiny.PROJECTOR), str(golden / tiny.LANGUAGE))
    loaded = load(ModelChoice(*folders, "tiny", device=device, **settings))
    model = loaded.model
    named = dict(model.get_decoder().layers.named_modules())
    small = {name for name, each in named.items() if type(each).__name__ == layer}
    assert small == {name for name, each in named.items() if name.endswith("_proj")}
    assert {each.weight.dtype for name, each in named.items() if name in small} <= {torch.uint8, torch.int8}
    for whole in (model.lm_head, model.get_model().mm_projector, model.get_vision_tower()):
        assert not {"Linear4bit", "Linear8bitLt"} & {type(each).__name__ for each in whole.modules()}
        assert all(each.dtype.is_floating_point for each in whole.parameters())
    assert {each.device.type for each in model.parameters()} == {device}
    prompt = prompt_of("vicuna_v1", "What is it?", "<image>\n")
    request = Request(prompt, (ImageFile(golden / "images/a_640x480.png"),))
    ((_, reply),) = Engine(loaded, Generation(max_new_tokens=6)).answer([request])
    assert reply.text
