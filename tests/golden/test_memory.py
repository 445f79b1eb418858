"""The memory plan counts what torch saves, shares what is shared, and names flags that take less."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch import nn
from torch.profiler import ProfilerActivity, profile

from llava.train.arguments import parse_arguments
from llava.train.planning.footprint import measure
from llava.train.planning.memory import (
    SHARE,
    Batch,
    Pass,
    Sharing,
    _free_in_cgroup,
    free_memory,
    layers_to_recompute,
    plan_memory,
    remedies,
)
from llava.train.train import assemble
from support.model_sizes import BIG, GIB


def saved_bytes(model: Any, batch: dict[str, Any], autocast: torch.dtype | None) -> int:
    """Return the bytes that a forward pass saves, without weights and without the loss."""
    sizes: dict[int, int] = {}
    kept = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with torch.autocast("cpu", autocast, enabled=autocast is not None), hooks:
        logits = model(**batch).logits
    for tensor in (*model.parameters(), *model.buffers()):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    rows, length, vocabulary = logits.shape
    return sum(sizes.values()) - 4 * vocabulary * rows * (length - 1)  # log-probabilities of the loss


@pytest.mark.parametrize(
    ("run", "more"),
    [
        ("viii_lora", ["--lora_dropout", "0.05"]),
        ("viii_lora", ["--bf16", "True", "--lora_dropout", "0"]),
        ("viii_pretrain", []),
        ("viii_full", ["--bf16", "True"]),
    ],
)
def test_activations_are_what_torch_saves(
    golden: Path, monkeypatch: pytest.MonkeyPatch, run: str, more: list[str]
) -> None:
    monkeypatch.chdir(golden)
    argv = [*json.loads((golden / f"{run}.json").read_text())["argv"], "--output_dir", "unused", *more]
    made = assemble(*parse_arguments(argv))
    autocast = torch.bfloat16 if "--bf16" in more else None
    before = torch.get_rng_state()
    made.model.eval()
    footprint = measure(made.model, device=torch.device("cpu"), autocast=autocast)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in made.model.modules())

    batch = made.collator([made.dataset[index] for index in range(4)])
    del batch["notes"]
    positions = 4 * (batch["input_ids"].shape[1] + made.model.get_vision_tower().num_patches - 1)
    made.model.train()
    kept = saved_bytes(made.model, batch, autocast)
    assert plan_memory(footprint, Pass(positions, 0), Sharing()).device["activations"] == pytest.approx(
        kept, rel=0.05
    )

    made.model.gradient_checkpointing_enable({"use_reentrant": False})
    made.model.enable_input_require_grads()
    reduced = saved_bytes(made.model, batch, autocast)
    planned = plan_memory(footprint, Pass(positions, 0, recomputed=4), Sharing()).device["activations"]
    one_layer = footprint.layer_position * positions + 4 * footprint.layer_fixed
    # The plan treats each position as an image's, for which the projector saves more.
    assert 4 * footprint.layer_input * positions < reduced <= planned - one_layer
    assert reduced < kept / 3


def test_measuring_leaves_no_tensor_behind(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def storages() -> set[int]:
        gc.collect()
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    monkeypatch.chdir(golden)
    argv = [*json.loads((golden / "viii_full.json").read_text())["argv"], "--output_dir", "unused"]
    made = assemble(*parse_arguments(argv))
    layer = weakref.ref(made.model.model.layers[0].self_attn.q_proj.weight)
    before = storages()
    measure(made.model, device=torch.device("cpu"), autocast=None)
    assert storages() <= before
    del made
    gc.collect()
    assert layer() is None


def test_shared_memory_is_divided_among_the_ranks() -> None:
    def device_bytes(**sharing: Any) -> dict[str, float]:
        return plan_memory(BIG, Pass(8000, 800), Sharing(processes=8, **sharing)).device

    assert plan_memory(BIG, Pass(8000, 800), Sharing()).device["gradients"] == 1.36e9
    ddp = device_bytes()
    assert ddp["gradients"] == 2 * 1.36e9  # with the buckets that are sent
    assert ddp["optimizer"] == 8 * 340e6
    zero2 = device_bytes(zero_stage=2, optimizer=12.0)
    assert zero2["frozen weights"] == 14e9
    assert zero2["gradients"] == 1.36e9 / 8
    assert zero2["optimizer"] == 12 * 340e6 / 8
    zero3 = device_bytes(zero_stage=3, optimizer=12.0)
    assert zero3["frozen weights"] == 14e9 / 8
    assert zero3["weights in one piece"] == 2e9
    offload = plan_memory(
        BIG,
        Pass(8000, 800),
        Sharing(8, 3, 12.0, offloads_optimizer=True, offloads_weights=True, update="none"),
    )
    assert set(offload.device) == {"weights in one piece", "activations", "logits and loss"}
    assert sum(offload.host.values()) == pytest.approx((14e9 + 2 * 1.36e9 + 12 * 340e6) / 8)
    assert zero2["activations"] == ddp["activations"]
    without_casts = ddp["activations"] - BIG.layers * BIG.layer_fixed
    assert {device["activations"] for device in (zero3, offload.device)} == {without_casts}


@pytest.mark.parametrize("positions", [8, 8000])
def test_the_update_is_the_peak_where_it_takes_more_than_the_activations(positions: int) -> None:
    passed = Pass(positions, positions // 10, follows=False)
    plain, each, together = (
        plan_memory(BIG, passed, Sharing(update=kind)) for kind in ("none", "each", "all")
    )
    learning = 14e9 + 2 * 1.36e9 + 8 * 340e6
    if positions == 8000:
        assert plain.peak == each.peak == together.peak > learning + 1.36e9
        return
    assert plain.peak == pytest.approx(learning)
    assert each.peak == pytest.approx(learning + 2 * 67e6)
    assert together.peak == pytest.approx(learning + 1.36e9)


@pytest.mark.parametrize("foreach", [False, True])
def test_adamw_copies_what_the_plan_says(foreach: bool) -> None:
    # The largest is the first, as the embedding is: the weight before leaves its copy for a moment.
    weights = [nn.Parameter(torch.zeros(size)) for size in (3000, 1000, 2000)]
    optimizer = torch.optim.AdamW(weights, foreach=foreach)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()  # makes the state
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        optimizer.step()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most == pytest.approx(4 * (6000 if foreach else 2 * 3000), rel=0.05)


def test_sharing_is_read_from_the_flags(repo: Path) -> None:
    def shared(config: str | None, **more: Any) -> Sharing:
        settings: dict[str, Any] = {
            "optim": "adamw_torch",
            "world_size": 8,
            "fsdp": [],
            "deepspeed": config,
            "device": torch.device("cpu"),
            **more,
        }
        if config:
            parsed = HfDeepSpeedConfig(str(repo / "scripts" / config))
            settings["hf_deepspeed_config"] = parsed
            stage = parsed.get_value("zero_optimization.stage")
            settings["deepspeed_plugin"] = SimpleNamespace(zero_stage=stage)
        args: Any = SimpleNamespace(**settings)
        return Sharing.of(args)

    assert shared(None) == Sharing(8, 0, 8.0)
    assert shared(None, device=torch.device("cuda")) == Sharing(8, 0, 8.0, update="all")
    assert shared(None, optim="adamw_torch_fused").update == "none"
    assert shared(None, optim="paged_adamw_8bit") == Sharing(8, 0, 2.0, update="none")
    assert shared("zero2.json") == Sharing(8, 2, 12.0, update="none")
    assert shared("zero3.json") == Sharing(8, 3, 12.0, update="none")
    offload = Sharing(8, 3, 12.0, offloads_optimizer=True, offloads_weights=True, update="none")
    assert shared("zero3_offload.json") == offload


def test_no_more_layers_are_recomputed_than_memory_needs() -> None:
    passed, sharing = Pass(8192, 900), Sharing(8)
    counts = [layers_to_recompute(BIG, passed, sharing, size * GIB) for size in (200, 80, 40, 1)]
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2] < 32
    assert counts[3] == 32
    fits, misses = (
        plan_memory(BIG, replace(passed, recomputed=counts[1] - less), sharing).peak for less in (0, 1)
    )
    assert fits <= SHARE * 80 * GIB < misses


def test_each_remedy_needs_less_memory_than_the_one_before() -> None:
    batch = Batch(samples=12, accumulation=2, longest=2048)
    peaks, flags = [plan_memory(BIG, batch.passed(0), Sharing(8)).peak], []
    for option, planned in remedies(BIG, batch, Sharing(8), recomputed=0, can_quantise=True):
        flags.append(option)
        peaks.append(planned.peak)
    assert flags[0] == "--gradient_checkpointing True"
    assert flags[1].endswith("--per_device_train_batch_size 6 --gradient_accumulation_steps 4")
    assert flags[3].endswith("--per_device_train_batch_size 1 --gradient_accumulation_steps 24")
    assert [option.split("--")[-1] for option in flags[4:]] == [
        "bits 4",
        "deepspeed scripts/zero3.json",
        "deepspeed scripts/zero3_offload.json",
    ]
    assert peaks[:6] == sorted(peaks[:6], reverse=True)
    assert min(peaks) == peaks[-1]
    packed = replace(batch, row=8192, logits=0.1)
    assert packed.passed(0) == Pass(8192, 819)
    options = [option for option, _ in remedies(BIG, packed, Sharing(), recomputed=32, can_quantise=False)]
    assert options == ["--micro_batch_tokens 4096", "--micro_batch_tokens 2048"]
    first, _ = next(remedies(BIG, batch, Sharing(), recomputed=8, can_quantise=False))
    assert first == "--checkpoint_layers all"


def test_free_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    assert _free_in_cgroup(tmp_path) == float("inf")
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("700\n")
    (old / "memory.usage_in_bytes").write_text("300\n")
    (old / "memory.stat").write_text("cache 9\ninactive_file 50\n")
    assert _free_in_cgroup(tmp_path) == 450
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert _free_in_cgroup(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert _free_in_cgroup(tmp_path) == 450


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    single = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == pytest.approx(single / 4, rel=0.3)
