"""Every shortcut has the loss and the gradients of the plain path, in single precision up to rounding."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava.data.dataset import count_learnable
from llava.data.pack import assign_rows, count_positions, count_rows, select_samples
from llava.errors import DataError, SettingsError
from llava.model.builder import load_pretrained_model
from llava.model.fused import find_fusing_obstacle, fuse_layers
from llava.model.lora import add_adapter
from llava.model.packed_attention import PACKED, enable_packing
from llava.model.recipe import Recipe
from llava.train.arguments import parse_arguments
from llava.train.planning.memory import Batch, Sharing
from llava.train.planning.recompute import choose_recomputed_layers, recompute_first
from llava.train.step.recipe import resolve_recipe
from llava.train.step.rows import rows_of
from support import tiny_checkpoints as tiny
from support.batches import batch, learned
from support.errors import raises_code
from support.model_sizes import BIG, GIB

# What was seen is a tenth of it. Gradients are up to 2 here.
LOSS, GRADIENT = 1e-5, 5e-6
PATCHES = 16


@functools.cache
def loaded(golden: Path) -> Any:
    return load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )[1]


@pytest.fixture
def model(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The golden model with all of it trained but its tower; a copy."""
    monkeypatch.chdir(golden)
    model = copy.deepcopy(loaded(golden)).train()
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    return model


BATCHES = {
    "images": batch((40, 5), (25, 1), (33, 30)),
    "text alone": batch((40, None), (25, None)),
    "both": batch((40, 5), (25, None), (33, 30), (18, None)),
    "cut": batch((70, 5), (60, None), (66, 64), learn=30),
    "one": batch((40, 5)),
    "one of text": batch((40, None)),
    "some teach nothing": batch((40, 5), (12, None), (10, 2)),
    "nothing to learn": batch((12, 5), (10, None)),
    "learned from the start": batch((40, None), (25, 0), learn=0),
}
SHORTCUTS = {
    "pack": Recipe(pack=True),
    "sparse_loss": Recipe(sparse_loss=True),
    "skip_blank_images": Recipe(skip_blank_images=True),
    "all": Recipe(pack=True, sparse_loss=True, skip_blank_images=True),
}


def assert_equal(one: tuple[float, dict[str, Any]], other: tuple[float, dict[str, Any]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=LOSS)
    assert one[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, atol=GRADIENT, rtol=0, msg=name)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("kind", BATCHES)
def test_a_shortcut_changes_neither_loss_nor_gradients(kind: str, shortcut: str, model: Any) -> None:
    model.config.tokenizer_model_max_length = 64
    plain = learned(model, BATCHES[kind])
    assert any("mm_projector" in name for name in plain[1])
    enable_packing(model.config)
    assert_equal(learned(model, {**BATCHES[kind], "recipe": SHORTCUTS[shortcut]}), plain)


def test_unread_layers_of_the_tower_change_neither_loss_nor_gradients(model: Any) -> None:
    tower = model.get_vision_tower()
    (unread,) = tower.vision_tower.vision_model.encoder.layers[tower.depth :]
    attention, unread.self_attn = unread.self_attn, None  # it fails if it is run
    short = learned(model, BATCHES["both"])
    tower.runs_unread_layers = True
    with pytest.raises(TypeError):
        learned(model, BATCHES["both"])
    unread.self_attn = attention
    whole = learned(model, BATCHES["both"])
    tower.runs_unread_layers = False
    assert short[0] == whole[0]
    assert all(torch.equal(gradient, whole[1][name]) for name, gradient in short[1].items())


@pytest.mark.gpu
@pytest.mark.skipif(find_fusing_obstacle() is not None, reason=f"Liger: {find_fusing_obstacle()}")
@pytest.mark.parametrize("kind", BATCHES)
def test_ligers_kernels_change_loss_and_gradients_by_rounding_alone(kind: str, model: Any) -> None:
    model.to("cuda").config.tokenizer_model_max_length = 64
    inputs = {name: each.to("cuda") for name, each in BATCHES[kind].items()}
    plain = learned(model, inputs)
    fuse_layers(model)
    assert_equal(learned(model, inputs), plain)


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED])
def test_packed_rows_are_kept_apart_by_every_attention(attention: str, model: Any) -> None:
    plain = learned(model, BATCHES["both"])
    model.set_attn_implementation(attention)
    assert_equal(learned(model, {**BATCHES["both"], "recipe": SHORTCUTS["all"]}), plain)
    assert_equal(learned(model, BATCHES["both"]), plain)  # padded batches are read as before


@pytest.mark.parametrize("budget", [0, 60, 90, 1])
@pytest.mark.parametrize("kind", ["both", "cut", "one", "some teach nothing", "nothing to learn"])
def test_rows_of_a_batch_add_up_to_it(kind: str, budget: int, model: Any) -> None:
    model.config.tokenizer_model_max_length = 64
    inputs = BATCHES[kind]
    plain = learned(model, inputs)
    enable_packing(model.config)
    count = count_learnable(
        inputs["input_ids"], inputs["labels"], image_positions=PATCHES, max_length=64
    ).sum()
    recipe = Recipe(pack=True, micro_batch_tokens=budget, sparse_loss=True, skip_blank_images=True)
    rows = rows_of(inputs, recipe, supervised=count, image_positions=PATCHES, max_length=64)
    assert len(rows) == {0: 1, 1: len(inputs["labels"])}.get(budget, len(rows))
    filler = {**select_samples(inputs, []), "recipe": Recipe(pack=True), "supervised": count}
    assert_equal(learned(model, *rows, filler), plain)


@pytest.mark.parametrize("layers", [0, 1, 3, 4])
@pytest.mark.parametrize("reentrant", [True, False])
def test_an_adapter_learns_the_same_packed_and_partly_recomputed(
    layers: int, reentrant: bool, model: Any
) -> None:
    torch.manual_seed(0)
    model.enable_input_require_grads()
    model = add_adapter(model, r=8, alpha=16)
    model.get_model().mm_projector.requires_grad_(True)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    plain = learned(model, BATCHES["both"])
    enable_packing(model.config)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    recompute_first(model, layers)
    ran = [0] * 4
    for place, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.register_forward_hook(lambda *_, place=place: ran.__setitem__(place, ran[place] + 1))
    assert_equal(learned(model, {**BATCHES["both"], "recipe": SHORTCUTS["all"]}), plain)
    assert ran == [2] * layers + [1] * (4 - layers)


@pytest.mark.parametrize(
    ("wanted", "row", "room", "count"),
    [
        ("auto", 8192, 200 * GIB, range(1)),
        ("auto", 8192, 80 * GIB, range(1, 32)),
        ("auto", 4096, 80 * GIB, range(1)),
        ("auto", 8192, 20 * GIB, range(32, 33)),
        ("all", 8192, 200 * GIB, range(32, 33)),
        (5, 8192, 20 * GIB, range(5, 6)),
    ],
)
def test_layers_are_recomputed_as_memory_needs(wanted: Any, row: int, room: float, count: range) -> None:
    batch = Batch(16, 1, 2048, row=row, logits=0.2)
    args: Any = SimpleNamespace(activation_checkpointing=True)
    assert (
        choose_recomputed_layers(Recipe(checkpoint_layers=wanted), args, BIG, batch, Sharing(), room) in count
    )
    args.activation_checkpointing = False
    assert choose_recomputed_layers(Recipe(checkpoint_layers=wanted), args, BIG, batch, Sharing(), room) == 0


def test_more_layers_than_there_are_cannot_be_recomputed() -> None:
    args: Any = SimpleNamespace(activation_checkpointing=True)
    with raises_code("out-of-range", SettingsError):
        choose_recomputed_layers(Recipe(checkpoint_layers=33), args, BIG, Batch(1, 1, 9), Sharing(), 1.0)


def test_logits_are_made_and_images_encoded_only_where_needed(model: Any) -> None:
    images, logits = [], []
    tower = model.get_vision_tower().vision_tower.vision_model
    tower.embeddings.register_forward_hook(lambda _, given, __: images.append(len(given[0])))
    model.lm_head.register_forward_hook(lambda _, __, made: logits.append(made.shape))
    inputs = BATCHES["both"]
    model(**inputs)
    model(**inputs, recipe=SHORTCUTS["all"])
    model(**BATCHES["text alone"], recipe=SHORTCUTS["all"])
    counts = (BATCHES[name]["labels"][:, 1:] != -100 for name in ("both", "text alone"))
    assert images == [4, 2]  # no call at all for the batch of text
    assert [shape[:-1].numel() for shape in logits] == [
        4 * (40 + 15),
        *(int(count.sum()) for count in counts),
    ]


def test_a_missing_image_is_named_also_where_blank_ones_are_skipped(model: Any) -> None:
    inputs = BATCHES["both"]
    with pytest.raises(DataError, match="2 image slots and 2 rows that need a blank image but 3 images"):
        model(**{**inputs, "images": inputs["images"][:3]}, recipe=SHORTCUTS["all"])


# ---- rows


def test_samples_are_dealt_to_rows_of_like_length() -> None:
    lengths = [700, 90, 650, 120, 300, 310, 95, 640]
    rows = assign_rows(lengths, 3)
    assert sorted(place for row in rows for place in row) == list(range(8))
    totals = [sum(lengths[place] for place in row) for row in rows]
    assert max(totals) - min(totals) <= 100
    assert assign_rows([5, 4], 3) == [[0], [1], []]


@pytest.mark.parametrize(
    ("lengths", "budget", "count"),
    [
        ([5, 5, 5], 0, 1),
        ([5, 5, 5], 15, 1),
        ([5, 5, 5], 14, 2),
        ([9, 9, 9], 12, 3),
        ([50, 5, 5], 12, 3),
        ([50], 5, 1),
    ],
)
def test_as_few_rows_as_the_budget_allows(lengths: list[int], budget: int, count: int) -> None:
    assert count_rows(lengths, budget) == count


def test_positions_are_counted_with_images_and_without_what_is_cut() -> None:
    inputs = BATCHES["cut"]
    asked = (inputs["input_ids"], inputs["attention_mask"])
    assert count_positions(*asked, image_positions=PATCHES, max_length=2048).tolist() == [85, 60, 81]
    assert count_positions(*asked, image_positions=PATCHES, max_length=64).tolist() == [64, 60, 64]


# ---- the flags


def given(golden: Path, *more: str) -> Any:
    needed = ["--output_dir", "out", "--use_cpu", "--data_path", str(golden / "train_data/train.json")]
    return parse_arguments([*needed, *more])[2]


def test_a_recipe_sets_what_no_flag_says(golden: Path) -> None:
    exact = resolve_recipe(given(golden, "--recipe", "exact"), has_shortcuts=True)
    assert exact == Recipe()
    fast = resolve_recipe(given(golden), has_shortcuts=True)
    assert (fast.pack, fast.sparse_loss, fast.skip_blank_images, fast.skip_unread_layers) == (True,) * 4
    assert (fast.micro_batch_tokens, fast.checkpoint_layers) == (8192, "auto")
    one = resolve_recipe(given(golden, "--recipe", "exact", "--sparse_loss", "True"), has_shortcuts=True)
    assert one == Recipe(sparse_loss=True)
    other = ["--pack", "False", "--gradient_checkpointing", "--checkpoint_layers", "3"]
    assert resolve_recipe(given(golden, *other), has_shortcuts=True) == Recipe(
        sparse_loss=True, skip_blank_images=True, skip_unread_layers=True, checkpoint_layers=3
    )


def test_shortcuts_are_left_out_where_they_do_not_hold(golden: Path) -> None:
    args = given(golden)
    assert resolve_recipe(args, has_shortcuts=False) == Recipe(checkpoint_layers="auto")
    sharded: Any = SimpleNamespace(
        **{**vars(args), "n_gpu": 1, "deepspeed_plugin": SimpleNamespace(zero_stage=3)}
    )
    assert not resolve_recipe(sharded, has_shortcuts=True).skip_blank_images
    several: Any = SimpleNamespace(**{**vars(args), "n_gpu": 4})
    assert resolve_recipe(several, has_shortcuts=True) == Recipe(
        skip_unread_layers=True, checkpoint_layers="auto"
    )


def test_a_model_without_vision_refuses_shortcuts_that_it_does_not_know(golden: Path) -> None:
    """It would pass over them: rows of several samples would count as one each."""
    with raises_code("no-such-shortcut", SettingsError):
        resolve_recipe(given(golden, "--pack", "True", "--sparse_loss", "True"), has_shortcuts=False)
    assert resolve_recipe(given(golden), has_shortcuts=False) == Recipe(checkpoint_layers="auto")


def test_contradictions_between_shortcuts_are_reported_together(golden: Path) -> None:
    wrong = [
        "--recipe",
        "exact",
        "--micro_batch_tokens",
        "100",
        "--checkpoint_layers",
        "4",
        "--pack",
        "False",
    ]
    with pytest.raises(SettingsError) as caught:
        given(golden, *wrong)
    assert "--micro_batch_tokens splits packed rows" in str(caught.value)
    assert "--checkpoint_layers 4 without --gradient_checkpointing True" in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="--use_liger_kernel True: its kernels need an NVIDIA GPU"):
            given(golden, "--use_liger_kernel", "True")
    with pytest.raises(
        SettingsError, match=r"--recipe slow: wanted exact or fast; .*layers most: wanted auto"
    ):
        given(golden, "--recipe", "slow", "--checkpoint_layers", "most", "--gradient_checkpointing")
