"""Counted operations agree with torch's counter and with published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaForCausalLM

from llava.model import lora
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.train.arguments import parse_arguments
from llava.train.planning.flops import known_rate, peak_rate, training_flops
from llava.train.train import assemble


def build_run(golden: Path, monkeypatch: pytest.MonkeyPatch, run: str, *more: str) -> Any:
    monkeypatch.chdir(golden)
    argv = [*json.loads((golden / f"{run}.json").read_text())["argv"], "--output_dir", "unused", *more]
    # Eager attention is made of matrix products that torch can count on a CPU.
    return assemble(*parse_arguments(argv), attn_implementation="eager")


@pytest.mark.parametrize(
    ("run", "more"),
    [
        ("viii_lora", ["--lora_dropout", "0.05"]),
        ("viii_pretrain", []),
        ("viii_full", []),
        ("viii_full", ["--freeze_backbone", "True"]),
    ],
)
def test_a_step_costs_what_torch_counts(
    golden: Path, monkeypatch: pytest.MonkeyPatch, run: str, more: list[str]
) -> None:
    made = build_run(golden, monkeypatch, run, *more)
    index = next(index for index, sample in enumerate(made.dataset.samples) if sample.image is not None)
    batch = made.collator([made.dataset[index]])
    batch.pop("notes")
    made.model.get_vision_tower().vision_tower.vision_model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        output = made.model(**batch)
        output.loss.backward()
    length = output.logits.shape[1]
    assert length > made.model.get_vision_tower().num_patches
    assert training_flops(made.model).of([length], logits=length, images=1) == counter.get_total_flops()


def llava_7b(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return LLaVA-1.5-7B without weights."""
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    monkeypatch.setattr("llava.model.multimodal_encoder.clip_encoder.CLIPVisionTower._config_on_disk", tower)
    config = LlavaConfig(
        mm_vision_tower="openai/clip-vit-large-patch14-336",
        mm_hidden_size=1024,
        mm_vision_select_layer=-2,
        mm_projector_type="mlp2x_gelu",
    )
    config.vocab_size, config.intermediate_size = 32000, 11008
    with torch.device("meta"):
        return LlavaLlamaForCausalLM(config)


def test_llava_7b_matches_published_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava_7b(monkeypatch)
    whole = training_flops(model)
    # 6.607 G weights in matrix products, six operations for each; 36.0 TFLOP for a sample of 880 positions.
    assert whole.position + whole.logit == pytest.approx(6 * 6.607e9, rel=1e-3)
    assert whole.of([880], logits=880, images=1) == pytest.approx(36.0e12, rel=0.015)
    with torch.device("meta"):
        adapted = training_flops(lora.add_adapter(model, r=128, alpha=256))
    extra = adapted.position - whole.position * 2 / 3
    assert extra == pytest.approx(6 * 320e6, rel=1e-3)
    assert adapted.of([880], logits=880, images=1) == pytest.approx(26.1e12, rel=0.02)
    assert adapted.image == pytest.approx(0.366e12 + 0.024e12, rel=0.02)
    # Computing the logits of the supervised tenth only saves under 2 %.
    saved = 1 - adapted.of([880], logits=95, images=1) / adapted.of([880], logits=880, images=1)
    assert 0.01 < saved < 0.02


def test_packed_samples_cost_as_much_as_separate_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = training_flops(llava_7b(monkeypatch))
    separate = sum(flops.of([length], logits=10, images=1) for length in (700, 900))
    assert flops.of([700, 900], logits=20, images=2) == pytest.approx(separate)
    assert flops.of([1600], logits=20, images=2) > separate


def test_a_text_only_model_has_no_image_operations() -> None:
    config = LlavaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    flops = training_flops(LlamaForCausalLM(config))
    assert flops.image == 0
    assert flops.position == 2 * 3 * 2 * (4 * 64 * 64 + 3 * 64 * 128)


def test_quantising_a_layer_does_not_change_its_operations() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = LlavaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    model.model.layers.requires_grad_(False)
    before = training_flops(model)
    small = bitsandbytes.nn.Linear4bit(64, 128, bias=False)
    small.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj = small
    assert training_flops(model) == before


def test_a_gpu_is_known_by_its_drivers_name() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A800-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A10": 125e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GeForce RTX 4090": 165.2e12,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb": None,
        "NVIDIA A10G": None,
    }
    assert {name: known_rate(name) for name in names} == names


def test_measuring_a_cpu_leaves_the_random_state_unchanged() -> None:
    before = torch.random.get_rng_state()
    rate, source = peak_rate(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "measured" in source
    assert 1e8 < rate < 1e15
