"""Groups of prompts with a shared prefix: same answers as one at a time, each position read once."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
import os
import random
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TextStreamer

from llava.errors import DataError, SettingsError
from llava.infer.engine.attention import PrefixPass
from llava.infer.engine.budget import Budget, estimate_position_bytes, measure_budget
from llava.infer.engine.engine import Engine
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.kv_cache import RowCache
from llava.infer.engine.load import Loaded, load
from llava.infer.engine.packed import PromptGroup, continue_groups
from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Reply, Request
from llava.infer.engine.rounding import CLOSE_LEADS, STEPS, CloseCalls, describe_rounding
from llava.infer.jobs.prompting import prompt_of
from llava.model.onednn.attention import attend
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.tiny_model import tiny_model
from support.warm_python import warm_python

REPO = Path(__file__).resolve().parents[2]
IMAGES = ["a_640x480.png", "b_333x500.png", "c_100x37.png"]
RESTS = [(), (5,), (9, 8, 7, 6, 400, 401, 402), (5,), (300, 301), tuple(range(500, 530))]


def groups_of(loaded: Loaded) -> list[PromptGroup]:
    """Three groups with prefixes of different lengths: several prompts, two, and one without a suffix."""
    words = loaded.model.get_input_embeddings()
    long, short, whole = (words(torch.arange(3, 3 + length)).detach() for length in (40, 11, 25))
    return [
        PromptGroup(long, tuple(range(10, 16)), tuple(RESTS)),
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
        for name, rest in zip(group.indices, group.rests, strict=True)
    }


@pytest.fixture
def passes(golden: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of each pass through the tiny model's layers."""
    decoder = tiny_model(golden).model.get_decoder()
    forward, sizes = decoder.forward, []

    def watched(**inputs: Any) -> Any:
        if inputs["inputs_embeds"] is not None:
            assert len(inputs["inputs_embeds"]) == 1
            sizes.append(inputs["inputs_embeds"].shape[1])
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", watched)
    return sizes


def random_groups(loaded: Loaded, draw: random.Random) -> list[PromptGroup]:
    """Groups of random numbers of prompts, lengths of prefixes and rests, and ids."""
    words, groups, count = loaded.model.get_input_embeddings(), [], 0

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 600) for _ in range(length))

    for _ in range(draw.randint(2, 4)):
        size = draw.randint(1, 3)
        prefix = words(torch.tensor(ids(draw.randint(1, 60)))).detach()
        rests = tuple(ids(draw.choice([0, 1, 5, 20])) for _ in range(size))
        groups.append(PromptGroup(prefix, tuple(range(count, count + size)), rests))
        count += size
    return groups


BUDGETS = [(1, 1, 1), (20, 100, 100), (64, 500, 7), (1000, 200, 4), (1000, 100_000, 1000)]


@pytest.mark.parametrize("seed", range(4))
def test_prompts_of_random_shapes_continue_as_each_does_alone(golden: Path, seed: int) -> None:
    loaded, draw = tiny_model(golden), random.Random(seed)
    groups = random_groups(loaded, draw)[: 2 if seed == 0 else 4]
    free = continued_alone(loaded, groups, steps=256 if seed == 0 else 20)
    stop_ids = {one.ids[draw.randint(0, len(one.ids) - 1)] for one in list(free.values())[::3]}
    wanted = {name: cut(one, stop_ids) for name, one in free.items()}
    lengths = {len(ids) for ids in wanted.values()}
    assert len(lengths) > 2
    steps = max(len(one.ids) for one in free.values())
    for limits in (draw.choice(BUDGETS[1:3]), draw.choice(BUDGETS[3:])):
        found = dict(
            continue_groups(
                loaded.model, iter(groups), Budget(*limits), max_new_tokens=steps, stop_ids=stop_ids
            )
        )
        assert {name: one.ids for name, one in found.items()} == wanted


def cut(one: Continuation, stop_ids: Collection[int]) -> list[int]:
    """Return the ids before the first stop id."""
    return list(itertools.takewhile(lambda token: token not in stop_ids, one.ids))


def test_margins_are_those_of_each_prompt_alone(golden: Path) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)
    wanted = continued_alone(loaded, groups, steps=8)
    for limits in BUDGETS:
        found = dict(continue_groups(loaded.model, groups, Budget(*limits), max_new_tokens=8, stop_ids=()))
        assert found.keys() == wanted.keys()
        for name, one in found.items():
            assert one.ids == wanted[name].ids
            assert one.margin == pytest.approx(wanted[name].margin, abs=1e-4)
            assert one.lead == pytest.approx(wanted[name].lead, abs=1e-5)


def test_every_position_is_read_once_and_none_is_padding(golden: Path, passes: list[int]) -> None:
    loaded = tiny_model(golden)
    budget = Budget(1000, 10_000, 1000)
    list(continue_groups(loaded.model, groups_of(loaded), budget, max_new_tokens=3, stop_ids=()))
    assert passes == [40 + 11 + 25, sum(map(len, RESTS)) + 4, 9, 9]


def test_a_prefix_is_read_within_the_budget_and_answers_go_on_together(
    golden: Path, passes: list[int]
) -> None:
    loaded = tiny_model(golden)
    budget = Budget(12, 10_000, 99)
    list(continue_groups(loaded.model, groups_of(loaded), budget, max_new_tokens=4, stop_ids=()))
    # The first group's prompts take turns, because their rests have more ids than a pass.
    assert passes[:3] == [40, 11, 25]
    assert sum(passes) == 40 + 11 + 25 + sum(map(len, RESTS)) + 4 + 9 * 3
    assert passes[3:6] == [11, 4, 5 + 2 + 1]


def test_a_group_enters_when_another_has_finished(golden: Path, passes: list[int]) -> None:
    loaded = tiny_model(golden)
    words = loaded.model.get_input_embeddings()
    groups = [
        PromptGroup(words(torch.arange(3, 3 + length)).detach(), (name,), ((),))
        for name, length in enumerate((20, 21, 22, 23))
    ]
    free = continued_alone(loaded, groups, steps=30)
    stop_ids = {free[1].ids[4]}
    wanted = {name: cut(one, stop_ids) for name, one in free.items()}
    assert len(wanted[1]) < len(wanted[0]) == 30
    passes.clear()
    taken: list[int] = []

    def source() -> Iterator[PromptGroup]:
        for group in groups:
            taken.append(len(passes))
            yield group

    budget = Budget(25, 110, 2)
    found = dict(continue_groups(loaded.model, source(), budget, max_new_tokens=30, stop_ids=stop_ids))
    assert {name: one.ids for name, one in found.items()} == wanted
    assert taken[:2] == [0, 0]
    assert passes[:2] == [20, 21]
    entered = passes.index(22)
    assert len(wanted[1]) <= entered < 30
    assert set(passes[2:entered]) == {2}


def test_prefixes_wait_for_others_to_share_a_pass_with(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    words, draw = loaded.model.get_input_embeddings(), random.Random(0)
    groups = [
        PromptGroup(words(torch.tensor([draw.randrange(3, 600) for _ in range(20)])).detach(), (name,), ((),))
        for name in range(70)
    ]
    free = continued_alone(loaded, groups, steps=12)
    stop_ids = {free[name].ids[draw.randrange(10)] for name in range(0, 70, 4)}
    wanted = {name: cut(one, stop_ids) for name, one in free.items()}
    assert len({len(ids) for ids in wanted.values()}) > 5
    shared: list[int] = []

    def watched(cache: RowCache, first: int, lengths: list[int]) -> PrefixPass:
        shared.append(len(lengths))
        return PrefixPass(cache, first, lengths)

    monkeypatch.setattr("llava.infer.engine.packed.PrefixPass", watched)
    budget = Budget(200, 24 * 70, 1000)  # 10 prefixes a pass, 24 or more groups at the same time
    found = dict(continue_groups(loaded.model, groups, budget, max_new_tokens=12, stop_ids=stop_ids))
    assert {name: one.ids for name, one in found.items()} == wanted
    assert sum(shared) == 70
    assert shared[:2] == [10, 10]
    entered = shared[shared.index(min(shared[:10])) + 1 :]
    assert len(entered) > 2
    assert min(entered[:-1]) >= 5


def test_prompts_before_a_broken_one_are_finished(golden: Path) -> None:
    loaded = tiny_model(golden)
    groups = groups_of(loaded)

    def source() -> Iterator[PromptGroup]:
        yield from groups[:2]
        raise DataError("broken", code="broken")

    replies = continue_groups(loaded.model, source(), Budget(50, 60, 3), max_new_tokens=3, stop_ids=())
    found = [name for name, _ in itertools.islice(replies, 8)]
    assert sorted(found) == [0, 1, *range(10, 16)]
    with raises_code("broken", DataError):
        next(replies)


def test_a_cache_keeps_what_is_in_the_rows_that_stay() -> None:
    cache, like = RowCache(), torch.zeros(1, 2, 1, 3)
    cache.reserve(3, 4)
    keys, values = cache.layer(0, like)
    for row in range(3):
        keys[row], values[row] = row + 1, -row - 1
    used = keys.shape[2]
    cache.arrange([0, 2])
    cache.reserve(2, 300)
    keys, values = cache.layer(0, like)
    assert keys.shape == values.shape == (2, 2, keys.shape[2], 3)
    assert keys.shape[2] >= 300
    assert keys[:2, 0, :used, 0].tolist() == [[1] * used, [3] * used]
    assert values[:2, 1, :used, 2].tolist() == [[-1] * used, [-3] * used]
    assert keys[:, :, used:].count_nonzero() == 0


def test_many_rows_and_long_ones_do_not_make_a_cache_of_many_long_rows() -> None:
    cache, like = RowCache(), torch.zeros(1, 2, 1, 3)
    for rows, columns in ((160, 25), (3, 600), (160, 25), (3, 26)):
        cache.reserve(rows, columns)
        keys, _ = cache.layer(0, like)
        assert keys.shape[0] >= rows
        assert keys.shape[2] >= columns
        assert keys.shape[0] * keys.shape[2] < 2 * 160 * 60


def test_prompts_without_a_rest_may_be_more_than_any_before(golden: Path) -> None:
    loaded = tiny_model(golden)
    words = loaded.model.get_input_embeddings()

    def group(name: int, length: int, *rests: tuple[int, ...]) -> PromptGroup:
        ids = torch.arange(3 + 50 * name, 3 + 50 * name + length)
        return PromptGroup(words(ids).detach(), tuple(range(name, name + len(rests))), rests)

    groups = [group(0, 40, (5,)), *(group(name, 10, ()) for name in (1, 2, 3))]
    free = continued_alone(loaded, groups, steps=4)
    stop_ids = {free[1].ids[0]}
    wanted = {name: cut(one, stop_ids) for name, one in free.items()}
    assert not wanted[1]
    assert all(wanted[name] for name in (0, 2, 3))
    budget = Budget(1000, 60, 100)  # the first group has no room for another
    found = dict(continue_groups(loaded.model, groups, budget, max_new_tokens=4, stop_ids=stop_ids))
    assert {name: one.ids for name, one in found.items()} == wanted


def test_heads_may_share_keys_and_values() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 700, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    loaded: Any = SimpleNamespace(model=LlamaForCausalLM(config).eval())
    groups = groups_of(loaded)
    wanted = {name: one.ids for name, one in continued_alone(loaded, groups, steps=8).items()}
    found = continue_groups(loaded.model, groups, Budget(1000, 10_000, 1000), max_new_tokens=8, stop_ids=())
    assert {name: one.ids for name, one in found} == wanted


def test_scores_of_many_rows_are_made_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, hidden = torch.randn(7, 4, 3, 8), torch.zeros(7, 1, 3, 20, dtype=torch.bool)
    hidden[2:, :, :, 5:] = True
    keys, values = torch.randn(2, 7, 4, 20, 8)
    wanted = [attend(query, keys, values, mask, 0.3) for mask in (None, hidden)]
    sizes: list[int] = []
    amax = torch.Tensor.amax

    def watched(scores: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        sizes.append(scores.numel())
        return amax(scores, *args, **settings)

    monkeypatch.setattr(torch.Tensor, "amax", watched)
    monkeypatch.setattr("llava.model.onednn.attention._SCORES", 2 * 4 * 3 * 20)
    found = [attend(query, keys, values, mask, 0.3) for mask in (None, hidden)]
    assert sizes == [480, 480, 480, 240] * 2
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("longest", [1, 5])
def test_what_is_attended_to_apart_adds_up_to_attention_at_once(longest: int, groups: int) -> None:
    torch.manual_seed(longest)
    rows, heads, features, columns = 3, 4, 8, 12
    query = 3 * torch.randn(rows, heads, longest, features)
    keys, values = torch.randn(2, rows, heads // groups, columns, features)
    hidden = torch.rand(rows, 1, longest, columns) < 0.4
    hidden[..., [0, 7]] = False  # each part has something to see
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=~hidden, scale=0.3, enable_gqa=True
    )
    parts = [
        attend(query, keys[:, :, part], values[:, :, part], hidden[..., part], 0.3)
        for part in (slice(0, 7), slice(7, None))
    ]
    (first, first_log), (second, second_log) = parts
    found = torch.lerp(second, first, torch.sigmoid(first_log - second_log))
    torch.testing.assert_close(found, wanted)


def test_rests_of_a_prefix_are_not_scored_against_each_other(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_model(golden)
    layers, heads = loaded.model.config.num_hidden_layers, loaded.model.config.num_attention_heads
    scored: list[tuple[int, int]] = []

    def watched(query: torch.Tensor, keys: torch.Tensor, *others: Any) -> Any:
        scored.append((math.prod(query.shape[:3]) // heads, keys.shape[2]))
        return attend(query, keys, *others)

    monkeypatch.setattr("llava.infer.engine.attention.attend", watched)
    prefix = loaded.model.get_input_embeddings()(torch.arange(3, 43)).detach()
    rests = tuple((number, 8, 7) for number in range(50, 70))
    budget = Budget(1000, 10_000, 1000)
    group = PromptGroup(prefix, tuple(range(20)), rests)
    list(continue_groups(loaded.model, [group], budget, max_new_tokens=3, stop_ids=()))
    # The rests, then two times a token of each: to the prefix, and to what a prompt has read itself.
    assert scored == [
        part for new, own in ((60, 3), (20, 4), (20, 5)) for part in [(new, 40), (new, own)] * layers
    ]


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
    loaded = tiny_model(golden)
    in_tiles(loaded, monkeypatch)
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
    full = tiny_model(golden)
    loaded = dataclasses.replace(full, model=copy.deepcopy(full.model).to(torch.bfloat16))
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


@pytest.mark.parametrize(("dtype", "reach"), [("float32", 1.9e-4), ("float16", 0.195), ("bfloat16", 0.78)])
def test_a_close_call_is_measured_by_the_precision(dtype: str, reach: float) -> None:
    calls = CloseCalls(dtype, requests=99)
    for _ in range(7):
        calls.measure(0.0, 0.0)
    assert calls.judge(0.97 * reach / 25) == "close"
    assert calls.judge(1.03 * reach / 25) == calls.judge(1.9 * reach / 25) == "open"
    assert calls.judge(2.1 * reach / 25) == "certain"


def test_the_limit_follows_what_was_measured() -> None:
    calls, step = CloseCalls("float16", requests=5000), STEPS["float16"]
    assert calls.judge(1.0) == "close"  # one of the first
    for _ in range(4):
        calls.measure(20 * step, 23 * step)
    assert calls.limit == pytest.approx(18 * step)
    for _ in range(60):
        calls.measure(3 * step, 3 * step)
    assert calls.limit == pytest.approx(6 * 0.75 * step)
    for _ in range(600):
        calls.measure(3 * step, 3 * step)
    assert calls.limit == pytest.approx(4 * step)
    assert [calls.judge(lead * step) for lead in (3.9, 4.1, 8.1)] == ["close", "open", "certain"]
    assert "0 under 2, 1 under 4, 1 under 8, 1 under 16, 0 under 32" in calls.describe()
    assert calls.describe().endswith("0 under 128, 1 more")
    # Answers of their own: one that was ahead by 2 steps in the batch is behind by 1 alone.
    assert describe_rounding([(1 * step, -2 * step), (9 * step, 5 * step)], "float16") == {
        "asked_again": 2,
        "changed": 1,
        "noise": pytest.approx(3.5355),
    }
    assert describe_rounding([], "float32") == {"asked_again": 0, "changed": 0, "noise": None}


def test_a_quick_precision_asks_one_in_a_thousand_again_and_a_short_run_none() -> None:
    for requests, first in ((1000, 0), (2048, 2), (10**6, 16)):
        calls = CloseCalls("float32", requests)
        for _ in range(first):
            assert calls.judge(1.0) == "close"
            calls.measure(1.0, 1.0)
        assert calls.judge(1.0) == "certain"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "load_8bit", "load_4bit"])
def test_a_gpus_answers_are_those_of_one_prompt_at_a_time(golden: Path, kind: str) -> None:
    settings: dict[str, Any] = {kind: True} if kind.startswith("load") else {"dtype": kind}
    folders = (str(golden / tiny.PROJECTOR), str(golden / tiny.LANGUAGE))
    loaded = load(ModelChoice(*folders, "tiny", device="cuda", **settings))
    requests, generation = requests_about(golden, 300), Generation(max_new_tokens=6)
    engine = Engine(loaded, generation)
    assert texts(engine, requests) == texts(Engine(loaded, generation, batch_size=1), requests)
    assert engine.asked_again < len(requests)


def test_answers_that_seemed_certain_are_asked_again_if_rounding_proves_larger(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests, generation = tiny_model(golden), requests_about(golden), Generation(max_new_tokens=6)
    leads = sorted(reply.lead or 0.0 for reply in replies(Engine(loaded, generation, exact=False), requests))
    limit = leads[2] * 1.001
    doubtful = sum(lead < 2 * limit for lead in leads)
    assert 3 < doubtful < len(leads)
    monkeypatch.setitem(CLOSE_LEADS, "float32", limit)
    engine = Engine(loaded, generation)
    replies(engine, requests)
    assert engine.asked_again == 3

    def rounded(*args: Any, **settings: Any) -> Iterator[tuple[int, Continuation]]:
        for index, one in continue_groups(*args, **settings):
            one.lead *= 0.2 if one.lead < limit else 1.0
            yield index, one

    monkeypatch.setattr("llava.infer.engine.engine.continue_groups", rounded)
    found = replies(engine, requests)
    assert engine.asked_again >= doubtful
    certain = [reply.lead for reply in found if reply.lead_in_batch is None]
    assert min(lead for lead in certain if lead) >= 2 * limit


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


def in_tiles(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model read images in tiles of 56 pixels."""
    grids = [[56, 112], [112, 56], [112, 112]]
    monkeypatch.setattr(loaded.model.config, "image_aspect_ratio", "anyres", raising=False)
    monkeypatch.setattr(loaded.model.config, "mm_patch_merge_type", "spatial", raising=False)
    monkeypatch.setattr(loaded.model.config, "image_grid_pinpoints", grids, raising=False)


@pytest.mark.parametrize("module", ["layers", "tower", "tiles"])
def test_running_out_of_memory_halves_the_budget(
    golden: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: str
) -> None:
    loaded = tiny_model(golden)
    requests = requests_about(golden, 30)
    generation = Generation(max_new_tokens=5)
    if module == "tiles":
        in_tiles(loaded, monkeypatch)
    wanted = texts(Engine(loaded, generation, batch_size=1), requests)
    if module == "tiles":
        short = ShortOfMemory(loaded.model.encode_images, 1)
        monkeypatch.setattr("llava.infer.engine.engine.find_change", lambda model: None)
        monkeypatch.setattr(loaded.model, "encode_images", short)
    elif module == "layers":
        short = ShortOfMemory(loaded.model.get_decoder().forward, 150)
        monkeypatch.setattr("llava.infer.engine.engine.find_change", lambda model: None)
        monkeypatch.setattr(loaded.model.get_decoder(), "forward", short)
    else:
        short = ShortOfMemory(loaded.model.encode_views, 2)
        monkeypatch.setattr(loaded.model, "encode_views", short)
    with caplog.at_level(logging.INFO, logger="llava.infer.engine.budget"):
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
    for batch_size in (None, 1):
        engine = Engine(loaded, Generation(max_new_tokens=1), batch_size=batch_size)
        with raises_code("out-of-memory", SettingsError):
            texts(engine, requests_about(golden))
    failed = never.failed
    with raises_code("out-of-memory", SettingsError):
        engine.reply_streaming(requests_about(golden)[0], TextStreamer(loaded.tokenizer))
    assert never.failed == failed + 1  # words that are shown are not shown again


def test_a_changed_model_that_runs_out_of_memory_once_is_asked_again(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, requests = tiny_model(golden), requests_about(golden, 2)
    wanted = texts(Engine(loaded, Generation(max_new_tokens=3), batch_size=1), requests)
    decoder = loaded.model.get_decoder()
    failed: list[int] = []
    forward = decoder.forward

    def once(**inputs: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(decoder, "forward", once)
    assert texts(Engine(loaded, Generation(max_new_tokens=3)), requests) == wanted
    assert failed


def test_a_window_is_encoded_in_full_batches() -> None:
    def planned(positions: int, patches: int, prompts: int = 10**6) -> tuple[int, int]:
        budget = Budget(positions, 10**6, prompts, patches)
        return budget.images, budget.groups

    assert planned(16384, 576) == (28, 28)
    assert planned(8192, 576) == (14, 14)
    assert planned(3000, 576) == (5, 10)
    assert planned(512, 576) == (1, 8)
    assert planned(16384, 576, prompts=4) == (4, 8)
    assert planned(16384, 16) == (1024, 32)


def test_images_are_encoded_in_batches_of_equal_size(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, sizes = tiny_model(golden), []
    encode_views = loaded.model.encode_views
    monkeypatch.setattr(
        loaded.model,
        "encode_views",
        lambda images, *rest: sizes.append(len(images)) or encode_views(images, *rest),
    )
    engine = Engine(loaded, Generation(max_new_tokens=1), batch_size=5, exact=False)
    names = sorted(golden.glob("images/*_*x*.png"))[:8]
    requests = [Request("<image>", (ImageFile(name),)) for name in names]
    texts(engine, requests)
    assert sizes == [4, 4]


def test_a_gpus_budget_follows_its_free_memory(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    assert measure_budget(loaded, None).positions == measure_budget(loaded, 3).positions == 512
    assert measure_budget(loaded, 3).prompts == 3
    assert measure_budget(loaded, None).cached == 32 * 1024
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000 * 4096))
    assert measure_budget(loaded, None).cached == 10_000
    kept, passing = estimate_position_bytes(loaded.model)
    assert kept == 2 * 4 * 128 * 4  # keys and values of 4 layers, 128 wide, in float32
    assert passing < 100_000
    monkeypatch.setattr(Loaded, "device", torch.device("cuda"))
    for free, limits in (
        (10**6, (512, 512)),
        (4000 * (kept + passing), (2000, 2000)),
        (10**11, (16384, (10**11 // 2 - 16384 * passing) // kept)),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        budget = measure_budget(loaded, None)
        assert (budget.positions, budget.cached) == limits


def test_the_speed_comparison_finds_equal_answers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_TEST_DATA"}
    command = [warm_python(), "scripts/bench/eval_speed.py", "--shape", "tiny", "--kinds", "gqa", "mmbench"]
    done = subprocess.run(
        [*command, "--scale", "0.3"], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| gqa", "| mmbench"))]
    assert [row[9] for row in rows] == ["31 of 31", "8 of 8"]
    assert all(int(row[10]) > 1 for row in rows)
