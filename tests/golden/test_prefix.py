"""Groups of prompts with a shared prefix: same answers as one at a time, each position read once."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicLayer

from llava.errors import DataError, SettingsError
from llava.infer.engine.budget import Budget, estimate_position_bytes, measure_budget
from llava.infer.engine.engine import Engine
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.kv_cache import PreallocatedLayer
from llava.infer.engine.load import Loaded
from llava.infer.engine.packed import PromptGroup, continue_groups, count_fitting_groups
from llava.infer.engine.requests import Generation, ImageFile, Reply, Request
from llava.infer.jobs.prompting import prompt_of
from support.errors import raises_code
from support.tiny_model import tiny_model

REPO = Path(__file__).resolve().parents[2]
IMAGES = ["a_640x480.png", "b_333x500.png", "c_100x37.png"]
SUFFIXES = [(), (5,), (9, 8, 7, 6, 400, 401, 402), (5,), (300, 301), tuple(range(500, 530))]


def groups_of(loaded: Loaded) -> list[PromptGroup]:
    """Three groups with prefixes of different lengths: several prompts, two, and one without a suffix."""
    words = loaded.model.get_input_embeddings()
    long, short, whole = (words(torch.arange(3, 3 + length)).detach() for length in (40, 11, 25))
    return [
        PromptGroup(long, tuple(range(10, 16)), tuple(SUFFIXES)),
        PromptGroup(short, (0, 1), ((77,), (78, 79, 80))),
        PromptGroup(whole, (2,), ((),)),
    ]


def continued_alone(
    loaded: Loaded, groups: list[PromptGroup], steps: int, stop_ids: Collection[int] = ()
) -> dict[int, Continuation]:
    words = loaded.model.get_input_embeddings()
    return {
        name: continue_prompt(
            loaded.model,
            torch.cat((group.prefix, words(torch.tensor(rest, dtype=torch.long)).detach())),
            max_new_tokens=steps,
            stop_ids=stop_ids,
        )
        for group in groups
        for name, rest in zip(group.indices, group.suffixes, strict=True)
    }


@pytest.fixture
def passes(golden: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (groups, positions) of each pass through the tiny model's layers."""
    decoder = tiny_model(golden).model.get_decoder()
    forward, shapes = decoder.forward, []

    def watched(**inputs: Any) -> Any:
        if inputs["inputs_embeds"] is not None:
            shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", watched)
    return shapes


@pytest.mark.parametrize("budget", [Budget(1, 1), Budget(20, 100), Budget(1000, 4), Budget(1000, 1000)])
def test_prompts_continue_in_groups_as_each_does_alone(golden: Path, budget: Budget) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    wanted = continued_alone(loaded, groups, steps=20)
    found = dict(continue_groups(loaded.model, groups, budget, max_new_tokens=20, stop_ids=()))
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        assert one.ids == wanted[name].ids
        assert one.margin == pytest.approx(wanted[name].margin, abs=1e-4)


def test_a_prefix_is_read_once_and_its_prompts_without_padding(
    golden: Path, passes: list[tuple[int, int]]
) -> None:
    loaded = tiny_model(golden)
    group = groups_of(loaded)[0]
    list(continue_groups(loaded.model, [group], Budget(1000, 1000), max_new_tokens=3, stop_ids=()))
    assert passes == [(1, 40), (1, sum(map(len, SUFFIXES))), (1, len(SUFFIXES)), (1, len(SUFFIXES))]


def test_finished_prompts_and_groups_are_dropped(golden: Path, passes: list[tuple[int, int]]) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    free = continued_alone(loaded, groups, steps=12)
    stop_ids = {free[name].ids[1] for name in (0, 1, 2, 12)}
    wanted = continued_alone(loaded, groups, 12, stop_ids)
    assert {len(one.ids) for one in wanted.values()} > {1, 12}
    passes.clear()
    found = dict(
        continue_groups(loaded.model, groups, Budget(1000, 1000), max_new_tokens=12, stop_ids=stop_ids)
    )
    assert {name: one.ids for name, one in found.items()} == {name: one.ids for name, one in wanted.items()}
    assert passes[0] == (3, 40)
    assert [groups for groups, _ in passes[2:]] == sorted((groups for groups, _ in passes[2:]), reverse=True)
    assert passes[-1][0] == 1
    assert passes[-1][1] < passes[2][1]


def test_a_budget_limits_prefixes_and_suffixes(golden: Path, passes: list[tuple[int, int]]) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    assert [count_fitting_groups(groups, Budget(tokens, 99)) for tokens in (1, 79, 80, 120)] == [1, 1, 2, 3]
    assert count_fitting_groups(groups, Budget(1000, 2)) == 2
    list(continue_groups(loaded.model, groups[:1], Budget(1000, 2), max_new_tokens=2, stop_ids=()))
    assert max(width for _, width in passes[1::2]) <= sum(map(len, SUFFIXES))
    passes.clear()
    list(continue_groups(loaded.model, groups[:1], Budget(12, 99), max_new_tokens=1, stop_ids=()))
    assert passes == [(1, 40), (1, 11), (1, 30)]


def test_a_preallocated_layer_holds_what_transformers_layer_holds() -> None:
    torch.manual_seed(0)
    ours, theirs = PreallocatedLayer(), DynamicLayer()
    for columns in (5, 1, 300, 1, 1):
        keys, values = torch.randn(2, 3, 4, columns, 6).unbind()
        for one, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(one, other)
    assert ours.get_seq_length() == 308
    first = theirs.keys[:, :, :5].clone()
    ours.keep_first(5)
    ours.keep_groups(torch.tensor([2, 0]))
    assert torch.equal(ours.keys, first[[2, 0]])


def requests_about(golden: Path, count: int = 13) -> list[Request]:
    """Questions of different lengths about three images in turn, one about two images, one about none."""
    files = [ImageFile(golden / "images" / name) for name in IMAGES]
    questions = [
        Request(
            prompt_of("vicuna_v1", f"{'Is it so? ' * (number % 5)}{number}", "<image>\n"),
            (files[number % 3],),
        )
        for number in range(count)
    ]
    both = Request(prompt_of("vicuna_v1", "Compare <image> with <image>."), (files[0], files[1]))
    return [
        *questions,
        questions[0],
        both,
        dataclasses.replace(both),
        Request(prompt_of("vicuna_v1", "Hello.")),
    ]


def replies(engine: Engine, requests: list[Request]) -> list[Reply]:
    found = dict(engine.answer(requests))
    return [found[index] for index in range(len(requests))]


def texts(engine: Engine, requests: list[Request]) -> list[str]:
    return [reply.text for reply in replies(engine, requests)]


def test_images_in_tiles_are_shared_as_well(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, grids = tiny_model(golden), [[56, 112], [112, 56], [112, 112]]
    monkeypatch.setattr(loaded.model.config, "image_aspect_ratio", "anyres", raising=False)
    monkeypatch.setattr(loaded.model.config, "mm_patch_merge_type", "spatial", raising=False)
    monkeypatch.setattr(loaded.model.config, "image_grid_pinpoints", grids, raising=False)
    requests = requests_about(golden)
    generation = Generation(max_new_tokens=8)
    wanted = replies(Engine(loaded, generation, batch_size=1), requests)
    found = replies(Engine(loaded, generation, exact=False), requests)
    for one, other in zip(found, wanted, strict=True):
        assert one.text == other.text
        assert one.margin == pytest.approx(other.margin, abs=1e-3)


def test_a_prompt_that_is_too_long_names_its_request(golden: Path) -> None:
    loaded = dataclasses.replace(tiny_model(golden), context_length=90)
    first, *_ = requests_about(golden)
    long = dataclasses.replace(first, prompt=first.prompt + " why" * 40, name="question 2")
    with raises_code("prompt-too-long", DataError) as caught:
        texts(Engine(loaded, Generation(max_new_tokens=1)), [first, long])
    assert str(caught.value).startswith("question 2: ")


def test_close_calls_of_half_precision_are_computed_again_and_counted(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = tiny_model(golden)
    loaded = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model).to(torch.bfloat16))
    requests = requests_about(golden)
    generation = Generation(max_new_tokens=6)
    wanted = texts(Engine(loaded, generation, batch_size=1), requests)
    engine = Engine(loaded, generation)
    with caplog.at_level(logging.INFO, logger="llava.infer.engine.engine"):
        assert texts(engine, requests) == wanted
    assert 0 < engine.asked_again <= len(requests)
    assert f"{engine.asked_again} of {len(requests)}" in caplog.text
    quick = Engine(loaded, generation, exact=False)
    texts(quick, requests)
    assert quick.asked_again == 0


@pytest.mark.parametrize(
    ("dtype", "reach"), [(torch.float32, 1.9e-4), (torch.float16, 0.195), (torch.bfloat16, 0.78)]
)
def test_a_close_call_is_measured_by_the_logits_scale_and_the_precision(
    golden: Path, dtype: torch.dtype, reach: float
) -> None:
    tiny = tiny_model(golden)
    engine = Engine(dataclasses.replace(tiny, model=copy.deepcopy(tiny.model).to(dtype)), Generation())
    for scale, within in ((25.0, reach), (50.0, 2 * reach)):
        assert engine._is_doubtful(Reply("", 0.97 * within, scale))
        assert not engine._is_doubtful(Reply("", 1.03 * within, scale))
    assert not engine._is_doubtful(Reply("sampled"))


class ShortOfMemory:
    """Wraps a function to run out of memory, as a GPU does, on more than `most` positions or images."""

    def __init__(self, function: Any, most: int) -> None:
        self.function, self.most = function, most
        self.failed = 0

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        size = args[0].shape[:1] if args else getattr(inputs["inputs_embeds"], "shape", (0,))[:2]
        if math.prod(size) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.function(*args, **inputs)


@pytest.mark.parametrize("module", ["layers", "tower"])
def test_running_out_of_memory_halves_the_budget(
    golden: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: str
) -> None:
    loaded = tiny_model(golden)
    requests = requests_about(golden, 30)
    generation = Generation(max_new_tokens=5)
    wanted = texts(Engine(loaded, generation, batch_size=1), requests)
    if module == "layers":
        short = ShortOfMemory(loaded.model.get_decoder().forward, 150)
        monkeypatch.setattr("llava.infer.engine.engine.find_change", lambda model: None)
        monkeypatch.setattr(loaded.model.get_decoder(), "forward", short)
    else:
        short = ShortOfMemory(loaded.model.encode_views, 2)
        monkeypatch.setattr(loaded.model, "encode_views", short)
    with caplog.at_level(logging.INFO, logger="llava.infer.engine.engine"):
        assert texts(Engine(loaded, generation), requests) == wanted
    assert short.failed > 0
    messages = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(messages) == short.failed
    assert "256 positions" in messages[0]


def test_too_little_memory_for_one_prompt_is_a_users_error(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model(golden)
    never = ShortOfMemory(loaded.model.get_decoder().forward, 0)
    monkeypatch.setattr("llava.infer.engine.engine.find_change", lambda model: None)
    monkeypatch.setattr(loaded.model.get_decoder(), "forward", never)
    with raises_code("out-of-memory", SettingsError):
        texts(Engine(loaded, Generation(max_new_tokens=1)), requests_about(golden))


def test_a_gpus_budget_follows_its_free_memory(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    assert measure_budget(loaded, None).positions == measure_budget(loaded, 3).positions == 512
    assert measure_budget(loaded, 3).prompts == 3
    position_bytes = estimate_position_bytes(loaded.model)
    assert 2 * 4 * 2 * 128 * 4 < position_bytes < 100_000  # keys and values of 4 layers, 128 wide, in float32
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    for free, tokens in ((10**7, 512), (4000 * position_bytes, 2000), (10**11, 16384)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        assert measure_budget(loaded, None).positions == tokens


def test_the_speed_comparison_finds_equal_answers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_TEST_DATA"}
    command = [sys.executable, "scripts/bench/eval_speed.py", "--shape", "tiny", "--kinds", "gqa", "mmbench"]
    done = subprocess.run(
        [*command, "--scale", "0.3"], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| gqa", "| mmbench"))]
    assert [row[9] for row in rows] == ["31 of 31", "8 of 8"]
    assert all(int(row[10]) > 1 for row in rows)
