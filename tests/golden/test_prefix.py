"""Prompts behind a shared prefix: the answers of one at a time, each position read once, memory run out."""

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
from llava.infer.engine.packed import Prompts, continue_groups, count_fitting_groups
from llava.infer.engine.requests import Generation, ImageFile, Reply, Request
from llava.infer.jobs.prompting import prompt_of
from support.tiny_model import tiny_model

REPO = Path(__file__).resolve().parents[2]
IMAGES = ["a_640x480.png", "b_333x500.png", "c_100x37.png"]
RESTS = [(), (5,), (9, 8, 7, 6, 400, 401, 402), (5,), (300, 301), tuple(range(500, 530))]


def groups_of(loaded: Loaded) -> list[Prompts]:
    """Three groups: prefixes of unlike length, several prompts, one prompt, none of them whole."""
    words = loaded.model.get_input_embeddings()
    long, short, whole = (words(torch.arange(3, 3 + length)).detach() for length in (40, 11, 25))
    return [
        Prompts(long, tuple(range(10, 16)), tuple(RESTS)),
        Prompts(short, (0, 1), ((77,), (78, 79, 80))),
        Prompts(whole, (2,), ((),)),
    ]


def alone(
    loaded: Loaded, groups: list[Prompts], steps: int, stop_ids: Collection[int] = ()
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
        for name, rest in zip(group.names, group.rests, strict=True)
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
def test_packed_prompts_continue_as_each_does_alone(golden: Path, budget: Budget) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    wanted = alone(loaded, groups, steps=20)
    found = dict(continue_groups(loaded.model, groups, budget, max_new_tokens=20, stop_ids=()))
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        assert one.ids == wanted[name].ids
        assert one.margin == pytest.approx(wanted[name].margin, abs=1e-4)


def test_a_prefix_is_read_once_and_there_is_no_padding_behind_it(
    golden: Path, passes: list[tuple[int, int]]
) -> None:
    loaded = tiny_model(golden)
    group = groups_of(loaded)[0]
    list(continue_groups(loaded.model, [group], Budget(1000, 1000), max_new_tokens=3, stop_ids=()))
    assert passes == [(1, 40), (1, sum(map(len, RESTS))), (1, len(RESTS)), (1, len(RESTS))]


def test_finished_prompts_leave_and_groups_with_them(golden: Path, passes: list[tuple[int, int]]) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    free = alone(loaded, groups, steps=12)
    stop_ids = {free[name].ids[1] for name in (0, 1, 2, 12)}
    wanted = alone(loaded, groups, 12, stop_ids)
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


def test_a_budget_holds_for_prefixes_and_for_what_follows(
    golden: Path, passes: list[tuple[int, int]]
) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    assert [count_fitting_groups(groups, Budget(tokens, 99)) for tokens in (1, 79, 80, 120)] == [1, 1, 2, 3]
    assert count_fitting_groups(groups, Budget(1000, 2)) == 2
    list(continue_groups(loaded.model, groups[:1], Budget(1000, 2), max_new_tokens=2, stop_ids=()))
    assert max(width for _, width in passes[1::2]) <= sum(map(len, RESTS))
    passes.clear()
    list(continue_groups(loaded.model, groups[:1], Budget(12, 99), max_new_tokens=1, stop_ids=()))
    assert passes == [(1, 40), (1, 11), (1, 30)]


def test_a_roomy_layer_holds_what_transformers_layer_holds() -> None:
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
    """Unlike questions about three images in turn, the first one also about nothing and about two."""
    files = [ImageFile(golden / "images" / name) for name in IMAGES]
    asked = [
        Request(
            prompt_of("vicuna_v1", f"{'Is it so? ' * (number % 5)}{number}", "<image>\n"),
            (files[number % 3],),
        )
        for number in range(count)
    ]
    both = Request(prompt_of("vicuna_v1", "Compare <image> with <image>."), (files[0], files[1]))
    return [*asked, asked[0], both, dataclasses.replace(both), Request(prompt_of("vicuna_v1", "Hello."))]


def replies(engine: Engine, requests: list[Request]) -> list[Reply]:
    found = dict(engine.answer(requests))
    return [found[index] for index in range(len(requests))]


def texts(engine: Engine, requests: list[Request]) -> list[str]:
    return [reply.text for reply in replies(engine, requests)]


def test_images_in_tiles_are_shared_as_well(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    monkeypatch.setattr(loaded.model.config, "image_aspect_ratio", "anyres")
    monkeypatch.setattr(loaded.model.config, "mm_patch_merge_type", "spatial")
    monkeypatch.setattr(loaded.model.config, "image_grid_pinpoints", [[56, 112], [112, 56], [112, 112]])
    requests = requests_about(golden)
    generation = Generation(max_new_tokens=8)
    wanted = replies(Engine(loaded, generation, batch_size=1), requests)
    found = replies(Engine(loaded, generation, exact=False), requests)
    for one, other in zip(found, wanted, strict=True):
        assert one.text == other.text
        assert one.margin == pytest.approx(other.margin, abs=1e-3)


def test_a_prompt_that_its_question_makes_too_long_names_itself(golden: Path) -> None:
    loaded = dataclasses.replace(tiny_model(golden), context_length=90)
    first, *_ = requests_about(golden)
    long = dataclasses.replace(first, prompt=first.prompt + " why" * 40, name="question 2")
    with pytest.raises(DataError, match=r"question 2: the prompt takes .* positions"):
        texts(Engine(loaded, Generation(max_new_tokens=1)), [first, long])


def test_close_calls_of_half_precision_are_asked_again_and_counted(
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
    assert f"{engine.asked_again} of {len(requests)} answers were close calls" in caplog.text
    quick = Engine(loaded, generation, exact=False)
    texts(quick, requests)
    assert quick.asked_again == 0


@pytest.mark.parametrize(
    ("dtype", "reach"), [(torch.float32, 1.9e-4), (torch.float16, 0.195), (torch.bfloat16, 0.78)]
)
def test_the_reach_of_rounding_grows_with_logits_and_the_precisions_step(
    golden: Path, dtype: torch.dtype, reach: float
) -> None:
    tiny = tiny_model(golden)
    engine = Engine(dataclasses.replace(tiny, model=copy.deepcopy(tiny.model).to(dtype)), Generation())
    for scale, within in ((25.0, reach), (50.0, 2 * reach)):
        assert engine._is_doubtful(Reply("", 0.97 * within, scale))
        assert not engine._is_doubtful(Reply("", 1.03 * within, scale))
    assert not engine._is_doubtful(Reply("sampled"))


class ShortOfMemory:
    """Stands before a function: raises as a GPU does when more than `most` positions or images come in."""

    def __init__(self, function: Any, most: int) -> None:
        self.function, self.most = function, most
        self.failed = 0

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        size = args[0].shape[:1] if args else getattr(inputs["inputs_embeds"], "shape", (0,))[:2]
        if math.prod(size) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.function(*args, **inputs)


@pytest.mark.parametrize("place", ["layers", "tower"])
def test_when_memory_runs_out_half_as_much_is_tried(
    golden: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    loaded = tiny_model(golden)
    requests = requests_about(golden, 30)
    generation = Generation(max_new_tokens=5)
    wanted = texts(Engine(loaded, generation, batch_size=1), requests)
    if place == "layers":
        short = ShortOfMemory(loaded.model.get_decoder().forward, 150)
        monkeypatch.setattr(loaded.model.get_decoder(), "forward", short)
    else:
        short = ShortOfMemory(loaded.model.encode_views, 2)
        monkeypatch.setattr(loaded.model, "encode_views", short)
    with caplog.at_level(logging.INFO, logger="llava.infer.engine.engine"):
        assert texts(Engine(loaded, generation), requests) == wanted
    assert short.failed > 0
    said = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(said) == short.failed
    assert "out of memory: from here on 256 positions at a time" in said[0]


def test_when_one_prompt_is_too_much_the_run_ends_in_one_line(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model(golden)
    never = ShortOfMemory(loaded.model.get_decoder().forward, 0)
    monkeypatch.setattr(loaded.model.get_decoder(), "forward", never)
    with pytest.raises(SettingsError, match=r"out of memory with a single prompt at a time; .* 4 or 8 bits"):
        texts(Engine(loaded, Generation(max_new_tokens=1)), requests_about(golden))


def test_a_gpus_budget_follows_its_free_memory(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    assert measure_budget(loaded, None).tokens == measure_budget(loaded, 3).tokens == 512
    assert measure_budget(loaded, 3).rows == 3
    a_position = estimate_position_bytes(loaded.model)
    assert 2 * 4 * 2 * 128 * 4 < a_position < 100_000  # keys and values of 4 layers, 128 wide, in float32
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    for free, tokens in ((10**7, 512), (4000 * a_position, 2000), (10**11, 16384)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        assert measure_budget(loaded, None).tokens == tokens


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
