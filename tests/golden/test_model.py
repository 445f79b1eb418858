"""The model computes what the original computes: features, spliced batches, loss, logits, answers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from llava.errors import CheckpointError, DataError
from llava.image_reading import read_image
from llava.images import process_images
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, next_token_loss
from llava.model.lora import add_adapter, leave_casts_to_autocast, lora_targets, split_trained_state
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.splice import splice
from llava.tokenizer import load_tokenizer
from llava.utils import build_logger, disable_torch_init
from support import tiny_checkpoints as tiny
from support.errors import raises_code

# Ten times what a first re-implementation reached.
EMBEDS, LOGITS, LOSS = 1.4e-4, 5e-5, 1e-5


@functools.cache
def loaded(golden: Path) -> tuple[Any, ...]:
    return load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )


@pytest.fixture
def model(golden: Path) -> Any:
    """The golden model; its config is put back afterwards."""
    model = loaded(golden)[1]
    before = dict(vars(model.config))
    yield model
    vars(model.config).clear()
    vars(model.config).update(before)


@pytest.fixture
def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "v_vi_vii_model.json").read_text(encoding="utf-8"))


@pytest.fixture
def arrays(golden: Path) -> Any:
    return np.load(golden / "v_vi_vii_model.npz")


def pixels_of(golden: Path, files: list[str]) -> torch.Tensor:
    _, model, processor, _ = loaded(golden)
    blank = torch.zeros(3, 56, 56)
    read = [
        blank
        if name == "zeros"
        else process_images([read_image(golden / "images" / name)], processor, model.config)[0]
        for name in files
    ]
    return torch.stack(read)


@pytest.fixture
def batch(golden: Path, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The golden batch: image, text alone, image in the middle, image at the end."""
    rows = facts["input_ids"]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    if any(0 in row for row in rows):
        mask = ids != 0
    labels = ids.clone()
    labels[:, :12] = -100
    labels[(ids == -200) | ~mask] = -100
    return {"ids": ids, "mask": mask, "labels": labels, "images": pixels_of(golden, facts["files"])}


def max_difference(one: torch.Tensor, other: np.ndarray) -> float:
    return float((one.detach() - torch.as_tensor(other)).abs().max())


def test_features_are_the_originals(model: Any, batch: dict[str, torch.Tensor], arrays: Any) -> None:
    assert max_difference(model.get_vision_tower()(batch["images"]), arrays["vision_hidden_m2"]) < EMBEDS
    assert max_difference(model.encode_images(batch["images"]), arrays["image_features"]) < EMBEDS


def test_the_tower_never_runs_the_layers_it_does_not_read(model: Any, batch: dict[str, torch.Tensor]) -> None:
    tower = model.get_vision_tower()
    unread = tower.vision_tower.vision_model.encoder.layers[3]
    attention, unread.self_attn = unread.self_attn, None  # it fails if it is run
    assert tower(batch["images"]).isfinite().all()
    unread.self_attn = attention
    ran = []
    hook = unread.register_forward_hook(lambda *_: ran.append(3))
    tower(batch["images"])
    hook.remove()
    assert ran == [3]  # someone wants to see it


@pytest.mark.parametrize(
    "case", ["right_2048", "right_60", "right_None", "left_2048", "left_60", "left_None"]
)
def test_spliced_batches_are_the_originals(
    case: str, model: Any, batch: dict[str, torch.Tensor], arrays: Any
) -> None:
    side, longest = case.split("_")
    model.config.tokenizer_padding_side = side
    model.config.tokenizer_model_max_length = None if longest == "None" else int(longest)
    prepare = model.prepare_inputs_labels_for_multimodal
    ids, positions, mask, past, embeds, labels = prepare(
        batch["ids"], None, batch["mask"], "past", batch["labels"], batch["images"]
    )
    assert (ids, positions, past) == (None, None, "past")
    assert max_difference(embeds, arrays[f"{case}_embeds"]) < EMBEDS
    assert np.array_equal(labels.numpy(), arrays[f"{case}_labels"])
    assert np.array_equal(mask.numpy(), arrays[f"{case}_mask"])
    assert mask.dtype == torch.bool
    counted = prepare(
        batch["ids"], torch.zeros_like(batch["ids"]), batch["mask"].long(), None, None, batch["images"]
    )
    assert np.array_equal(counted[1].numpy(), arrays[f"{case}_position_ids"])
    assert (counted[2].dtype, counted[5]) == (torch.int64, None)
    bare = prepare(batch["ids"][:1], None, None, None, None, batch["images"][:1])
    assert [bare[index] for index in (1, 2, 5)] == [None, None, None]


def test_two_images_and_views_are_the_originals(
    golden: Path, model: Any, facts: dict[str, Any], batch: dict[str, torch.Tensor], arrays: Any
) -> None:
    ids = torch.tensor(facts["two_images_ids"]).reshape(1, -1)
    images = batch["images"][[0, 3]]
    for given, name in (
        (images, "two_images_embeds"),
        (list(images[:, None]), "two_images_listinput_embeds"),
    ):
        embeds = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, given)[4]
        assert max_difference(embeds, arrays[name]) < EMBEDS
    views = model.encode_views(images[None])[0]  # one image of two views
    assert max_difference(views, arrays["five_dim_embeds"][0, 54:86]) < EMBEDS


def test_nothing_to_splice_comes_back_unchanged(model: Any, batch: dict[str, torch.Tensor]) -> None:
    for ids, images in ((batch["ids"], None), (batch["ids"][:, :1], batch["images"])):
        given = (ids, None, batch["mask"], "past", batch["labels"])
        back = model.prepare_inputs_labels_for_multimodal(*given, images)
        assert back == (ids, None, batch["mask"], "past", None, batch["labels"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_logits_are_the_originals(
    side: str, model: Any, facts: dict[str, Any], batch: dict[str, torch.Tensor], arrays: Any
) -> None:
    model.config.tokenizer_padding_side = side
    with torch.no_grad():
        out = model(
            batch["ids"], attention_mask=batch["mask"], labels=batch["labels"], images=batch["images"]
        )
    real = arrays[f"{side}_2048_mask"]
    assert abs(out.loss.item() - facts[f"loss_{side}"]) < LOSS
    assert max_difference(out.logits.logsumexp(-1)[real], arrays[f"logits_{side}_lse"][real]) < LOGITS
    assert np.array_equal(out.logits.argmax(-1).numpy()[real], arrays[f"logits_{side}_argmax"][real])
    # The file holds the first eight positions of the right-padded rows, the last eight of the others.
    last = out.logits[:, -8:] if side == "left" else out.logits[:, :8]
    assert max_difference(last, arrays[f"logits_{side}_last8"]) < LOGITS


def test_a_text_row_has_the_same_loss_with_a_blank_image_or_none(
    model: Any, facts: dict[str, Any], batch: dict[str, torch.Tensor]
) -> None:
    row = {name: tensor[1:2] for name, tensor in batch.items()}
    model.zero_grad()
    with_blank = model(row["ids"], attention_mask=row["mask"], labels=row["labels"], images=row["images"])
    with_blank.loss.backward()
    gradients = [parameter.grad for parameter in model.get_model().mm_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    without = model(row["ids"], attention_mask=row["mask"], labels=row["labels"])
    assert abs(with_blank.loss.item() - facts["loss_textonly_with_dummy_image"]) < LOSS
    assert abs(without.loss.item() - facts["loss_textonly_no_image"]) < LOSS
    model.zero_grad()


def test_answers_are_the_originals(golden: Path, model: Any, facts: dict[str, Any]) -> None:
    for case in facts["generate"]:
        ids = torch.tensor([case["input_ids"]])
        images = pixels_of(golden, [case["file"]]) if case["file"] else None
        greedy = model.generate(ids, images=images, do_sample=False, max_new_tokens=32)
        beams = model.generate(ids, images=images, do_sample=False, max_new_tokens=16, num_beams=3)
        # The original's transformers puts a BOS before the new tokens.
        assert greedy[0].tolist() == case["output_ids"][1:]
        assert beams[0].tolist() == case["beam3_ids"][1:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_answers_as_its_rows_do_wherever_it_is_padded(
    side: str, golden: Path, model: Any, facts: dict[str, Any]
) -> None:
    cases = [case for case in facts["generate"] if case["file"]]
    longest = max(len(case["input_ids"]) for case in cases)
    rows, masks = [], []
    for case in cases:
        fill = [0] * (longest - len(case["input_ids"]))
        row, mask = case["input_ids"], [1] * len(case["input_ids"])
        rows.append(fill + row if side == "left" else row + fill)
        masks.append(fill + mask if side == "left" else mask + fill)
    output = model.generate(
        torch.tensor(rows),
        images=pixels_of(golden, [case["file"] for case in cases]),
        attention_mask=torch.tensor(masks),
        do_sample=False,
        max_new_tokens=32,
    )
    assert output.tolist() == [ids[1:] for ids in facts["generate_batched_left_ids"]]


def test_sampling_with_a_seed_is_repeatable(golden: Path, model: Any, facts: dict[str, Any]) -> None:
    case = facts["generate"][0]
    answers = []
    for _ in range(2):
        torch.manual_seed(7)
        settings: Any = {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 50,
            "max_new_tokens": 16,
        }
        answers.append(
            model.generate(torch.tensor([case["input_ids"]]), pixels_of(golden, [case["file"]]), **settings)[
                0
            ].tolist()
        )
    assert answers[0] == answers[1] == facts["sample_seed7_t0.7_p0.9"][1:]


def test_a_prompt_is_never_cut_when_answering(golden: Path, model: Any, facts: dict[str, Any]) -> None:
    case = facts["generate"][0]
    ids, images = torch.tensor([case["input_ids"]]), pixels_of(golden, [case["file"]])
    model.config.tokenizer_model_max_length = 40
    output = model.generate(ids, images=images, do_sample=False, max_new_tokens=32)
    assert output[0].tolist() == case["output_ids"][1:]
    with torch.no_grad():
        assert model(ids, images=images).logits.shape[1] == ids.shape[1] + 15
        assert model(ids, images=images, labels=ids).logits.shape[1] == 40
    model.config.max_position_embeddings = 50
    with raises_code("prompt-too-long", DataError) as caught:
        model.generate(ids, images=images)
    assert f"{ids.shape[1] + 15} positions" in str(caught.value)


def test_different_numbers_of_images_and_slots_fail(model: Any, batch: dict[str, torch.Tensor]) -> None:
    ids = torch.tensor([[1, -200, 5, -200, 6]])
    for call, images, facts in (
        (model, batch["images"][:3], ("2 image slots", "3 images")),
        (model.generate, batch["images"][:1], ("2 image slots", "1 images")),
        (model, None, ("2 image slots", "0 images")),
        (model.generate, None, ("2 image slots", "0 images")),
    ):
        with raises_code("image-count", DataError) as caught:
            call(ids, images=images)
        assert all(fact in str(caught.value) for fact in facts)
    with raises_code("images-without-ids", DataError):
        model.generate(images=batch["images"])


WORDS = torch.arange(50 * 4, dtype=torch.float32).reshape(50, 4)


def small_splice(**settings: Any) -> Any:
    """The specification's example: four features an image, the second row text alone."""
    ids = torch.tensor([[1, 5, -200, 7, 8, 0, 0], [1, 5, 6, 0, 0, 0, 0]])
    labels = torch.tensor([[-100, -100, -100, 7, 8, -100, -100], [-100, 5, 6, -100, -100, -100, -100]])
    features = [torch.full((4, 4), -1.0), torch.full((4, 4), -2.0)]
    return splice(ids, labels, ids != 0, lambda at: WORDS[at], features, **settings)


def test_splicing_puts_features_between_words() -> None:
    spliced = small_splice(side="left")
    assert spliced.embeds.shape == (2, 8, 4)
    assert torch.equal(spliced.embeds[0], torch.cat([WORDS[[1, 5]], torch.full((4, 4), -1.0), WORDS[[7, 8]]]))
    assert spliced.labels[0].tolist() == [-100] * 6 + [7, 8]
    assert spliced.position_ids.tolist() == [[*range(8)], [0, 0, 0, 0, 0, 0, 1, 2]]
    assert spliced.labels[1].tolist() == [-100] * 6 + [5, 6]
    assert spliced.mask[1].tolist() == [False] * 5 + [True] * 3
    assert not spliced.embeds[1, :5].any()


def test_splicing_cuts_the_end_and_pads_the_right() -> None:
    spliced = small_splice(max_length=5)
    assert spliced.labels.tolist() == [[-100] * 5, [-100, 5, 6, -100, -100]]
    assert spliced.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_splicing_drops_every_masked_id() -> None:
    ids = torch.tensor([[0, 1, 9, 5, 0]])
    mask = torch.tensor([[0, 1, 0, 1, 0]])
    spliced = splice(ids, None, mask, lambda at: WORDS[at], [torch.ones(2, 4)])
    assert torch.equal(spliced.embeds[0], WORDS[[1, 5]])


def test_text_rows_need_their_blank_images() -> None:
    ids = torch.tensor([[1, -200], [1, 2]])
    with raises_code("image-count", DataError) as caught:
        splice(ids, None, None, lambda at: WORDS[at], [torch.ones(2, 4)])
    assert "1 rows that need a blank image" in str(caught.value)


def test_a_batch_without_supervised_labels_has_zero_loss_and_gradients() -> None:
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = next_token_loss(logits, torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_loss_is_the_mean_over_supervised_positions() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = -100
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(next_token_loss(logits, labels), wanted)


def config(**fields: Any) -> LlavaConfig:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 40,
    }
    return LlavaConfig(**small, num_attention_heads=2, mm_hidden_size=8, **fields)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (None, ["weight", "bias"]),
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
        ("mlp3x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
        ("identity", []),
    ],
)
def test_projectors_have_the_published_keys(kind: str | None, names: list[str]) -> None:
    assert list(build_vision_projector(config(mm_projector_type=kind)).state_dict()) == names


def test_an_unknown_projector_is_refused() -> None:
    for kind in ("mlp2x", "mlp0x_gelu", "qformer"):
        with raises_code("unknown-projector-type", CheckpointError):
            build_vision_projector(config(mm_projector_type=kind))


def test_transformers_knows_our_type_and_keeps_its_own() -> None:
    assert isinstance(AutoConfig.for_model("llava_llama"), LlavaConfig)
    assert not isinstance(AutoConfig.for_model("llava"), LlavaConfig)
    assert LlavaLlamaForCausalLM.accepts_loss_kwargs is False


def test_a_seven_billion_models_adapter_has_the_published_size() -> None:
    """319,815,680 for r = 128 on Vicuna-7B: the sum over q, k, v, o, gate, up and down of 32 layers."""
    with torch.device("meta"):
        whole = LlavaLlamaForCausalLM(LlavaConfig(num_hidden_layers=1))
    targets = lora_targets(whole)
    assert targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    linear = {name: module for name, module in whole.named_modules() if name.endswith(tuple(targets))}
    assert 32 * 128 * sum(sum(module.weight.shape) for module in linear.values()) == 319_815_680


def test_an_adapter_never_touches_the_tower(golden: Path) -> None:
    model = load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )[1]
    wrapped = add_adapter(model, r=2, alpha=4)
    wrapped.get_base_model().get_model().mm_projector.requires_grad_(True)
    state = split_trained_state(wrapped.named_parameters())
    assert len(state.adapter) == 4 * 7 * 2
    assert all(".layers." in name and "vision" not in name for name in state.adapter)
    assert sorted(state.non_lora) == [
        f"base_model.model.model.mm_projector.{name}" for name in ("0.bias", "0.weight", "2.bias", "2.weight")
    ]
    assert {tensor.dtype for tensor in state.adapter.values()} == {torch.float32}


def test_an_adapter_learns_the_same_bits_where_autocast_does_the_casts(golden: Path) -> None:
    """PEFT casts each input to float32 first; autocast casts it back."""
    ids = torch.arange(3, 40)[None]

    def learn(*, by_autocast: bool) -> list[torch.Tensor]:
        model = LlavaLlamaForCausalLM.from_pretrained(golden / tiny.LANGUAGE, dtype=torch.bfloat16)
        torch.manual_seed(0)
        wrapped = add_adapter(model, r=4, alpha=8).train()
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zeros would hide the inputs
                torch.nn.init.normal_(parameter)
        if by_autocast:
            leave_casts_to_autocast(wrapped)
        inputs: set[torch.dtype] = set()
        first = next(module for name, module in wrapped.named_modules() if name.endswith("lora_A.default"))
        first.register_forward_pre_hook(lambda _, given: inputs.add(given[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        assert inputs == {torch.bfloat16 if by_autocast else torch.float32}
        return [loss.detach(), *(each.grad for each in wrapped.parameters() if each.grad is not None)]

    ours, pefts = learn(by_autocast=True), learn(by_autocast=False)
    assert len(ours) == len(pefts) == 1 + 4 * 7 * 2
    assert all(torch.equal(one, other) for one, other in zip(ours, pefts, strict=True))


def vision_flags(golden: Path, **changes: Any) -> SimpleNamespace:
    flags: dict[str, Any] = {
        "vision_tower": str(golden / tiny.TOWER),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "tune_mm_mlp_adapter": False,
    }
    return SimpleNamespace(**(flags | changes))


def fresh(golden: Path) -> LlavaLlamaForCausalLM:
    return LlavaLlamaForCausalLM.from_pretrained(golden / tiny.LANGUAGE, dtype=torch.float32)


def test_a_language_model_gains_its_image_side(golden: Path) -> None:
    model = fresh(golden)
    assert model.get_vision_tower() is None
    flags = vision_flags(golden, pretrain_mm_mlp_adapter=str(golden / tiny.PROJECTOR / "mm_projector.bin"))
    model.get_model().initialize_vision_modules(flags, fsdp=["full_shard"])
    assert not any("vision_tower" in name for name in model.state_dict())  # hidden from FSDP
    model.get_model().initialize_vision_modules(flags)
    tower = model.get_vision_tower()
    assert tower is not None
    assert (tower.is_loaded, tower.hidden_size, tower.num_patches) == (True, 64, 16)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    projector = model.get_model().mm_projector
    assert projector is not None
    assert all(parameter.requires_grad for parameter in projector.parameters())
    assert (model.config.mm_hidden_size, model.config.use_mm_proj) == (64, True)
    with raises_code("projector-mismatch", CheckpointError):
        fresh(golden).get_model().initialize_vision_modules(
            vision_flags(
                golden, mm_projector_type="linear", pretrain_mm_mlp_adapter=flags.pretrain_mm_mlp_adapter
            )
        )


def test_class_tokens_can_be_kept(golden: Path) -> None:
    model = fresh(golden)
    model.get_model().initialize_vision_modules(vision_flags(golden, mm_vision_select_feature="cls_patch"))
    assert model.encode_images(torch.zeros(1, 3, 56, 56)).shape == (1, 17, 128)
    with raises_code("unknown-select-feature", CheckpointError):
        model.get_model().initialize_vision_modules(vision_flags(golden, mm_vision_select_feature="cls"))


def test_new_image_tokens_get_mean_rows_and_train_as_the_flags_say(golden: Path) -> None:
    model = fresh(golden)
    tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
    flags = vision_flags(golden, mm_use_im_start_end=True, tune_mm_mlp_adapter=True)
    model.get_model().initialize_vision_modules(flags)
    model.requires_grad_(False)
    model.initialize_vision_tokenizer(flags, tokenizer)
    words, heads = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (len(tokenizer), words.shape[0], model.config.vocab_size) == (2050, 2050, 2050)
    assert torch.allclose(words[2048:], words[:2048].mean(0).expand(2, -1))
    assert torch.allclose(heads[2048:], heads[:2048].mean(0).expand(2, -1))
    assert (words.requires_grad, heads.requires_grad) == (True, False)


def test_unpadded_tiles_end_in_a_newline(golden: Path) -> None:
    model = fresh(golden)
    flags = vision_flags(golden, mm_patch_merge_type="spatial_unpad")
    model.get_model().initialize_vision_modules(flags)
    model.config.image_aspect_ratio = "anyres"
    model.config.image_grid_pinpoints = [[112, 56]]
    views = [torch.zeros(3, 3, 56, 56), torch.zeros(1, 3, 56, 56)]
    blocks = model.encode_views(views, [(100, 50), (10, 10)])
    assert [len(block) for block in blocks] == [16 + 4 * (8 + 1), 16 + 1]
    assert torch.equal(blocks[1][-1], model.get_model().image_newline)
    with raises_code("missing-image-sizes", DataError):
        model.encode_views(views)


def test_keywords_stop_where_the_originals_did(golden: Path) -> None:
    tokenizer = load_tokenizer(golden / tiny.LANGUAGE)
    cases = json.loads((golden / "ii_tokenization.json").read_text(encoding="utf-8"))["keywords_stopping"]
    for case in cases:
        prompt = torch.tensor([case["prompt_ids"]])
        rule = KeywordsStoppingCriteria(case["keywords"], tokenizer, prompt)
        steps = [case["gen_ids"][: step + 1] for step in range(len(case["gen_ids"]))]
        assert [rule(torch.tensor([case["prompt_ids"] + step])) for step in steps] == case["fires_at"]
        # Generating from embeddings gives the new tokens alone.
        assert [rule(torch.tensor([step])) for step in steps] == case["fires_at"]


def test_model_names_are_the_originals(golden: Path) -> None:
    names = json.loads((golden / "ii_tokenization.json").read_text(encoding="utf-8"))[
        "get_model_name_from_path"
    ]
    assert {path: get_model_name_from_path(path) for path in names} == names


def test_the_originals_two_helpers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disable_torch_init()
    assert torch.nn.Linear(2, 2).weight.abs().sum() > 0
    logger = build_logger("worker", "worker.log")
    logger.info("hello")
    assert build_logger("worker", "worker.log") is logger
    assert len(logger.handlers) == 2
    assert "hello" in (tmp_path / "worker.log").read_text(encoding="utf-8")
