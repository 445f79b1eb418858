"""What other people's code calls, replaces and builds on in the model is honoured, everywhere."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    GenerationMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoder
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava.command import run
from llava.conversation import conv_templates
from llava.errors import CheckpointError
from llava.eval.run_llava import eval_model
from llava.image_reading import read_image
from llava.images import process_images
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, next_token_loss
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel, unpad_image
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.overrides import find_change
from llava.model.packed_attention import enable_packing
from llava.model.recipe import Recipe
from llava.model.splice import SplicedBatch
from llava.prompts.encode import tokenizer_image_token
from llava.train.arguments import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import assemble
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.tiny_model import tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 4}
SHORTCUTS = Recipe(pack=True, sparse_loss=True, skip_blank_images=True, skip_unread_layers=True)
Patch = Callable[[Any, pytest.MonkeyPatch], object]


@pytest.fixture
def loaded(golden: Path) -> Loaded:
    """A copy of the golden model, for changing."""
    tiny = tiny_model(golden)
    return Loaded(tiny.tokenizer, copy.deepcopy(tiny.model), tiny.image_processor, tiny.context_length)


@pytest.fixture
def requests(golden: Path) -> list[Request]:
    """Prompts that the engine would read together, since they share images and beginnings."""
    files = [ImageFile(golden / "images" / name) for name in ("a_640x480.png", "b_333x500.png")]
    asked = [f"USER: <image>\n{words} ASSISTANT:" for words in ("Is it so?", "Is it red or blue?")]
    about = [Request(asked[0], (files[0],)), Request(asked[1], (files[0],)), Request(asked[1], (files[1],))]
    return [*about, Request("USER: Hi. ASSISTANT:")]


def inputs_of(loaded: Loaded, request: Request) -> dict[str, Any]:
    ids = torch.tensor([tokenizer_image_token(request.prompt, loaded.tokenizer)])
    images = [read_image(image.path) for image in request.images if isinstance(image, ImageFile)]
    return {"input_ids": ids, "images": process_images(images, loaded.image_processor, loaded.model.config)}


def answers(loaded: Loaded, requests: list[Request], **settings: Any) -> list[str]:
    found = dict(Engine(loaded, Generation(max_new_tokens=4), **settings).answer(requests))
    assert [len(found[index].images) for index in range(len(requests))] == [len(r.images) for r in requests]
    return [found[index].text for index in range(len(requests))]


# ---- a replaced `prepare_inputs_labels_for_multimodal`

PREPARE = "prepare_inputs_labels_for_multimodal"
OURS = LlavaMetaForCausalLM.prepare_inputs_labels_for_multimodal


def prune(model: Any, ids: Any, positions: Any, mask: Any, past: Any, labels: Any, *images: Any) -> Any:
    """Keep every second position, with the original's parameters and results."""
    ids, positions, mask, past, embeds, labels = OURS(model, ids, positions, mask, past, labels, *images)
    kept = [None if each is None else each[:, ::2] for each in (mask, embeds, labels)]
    return (
        (ids, positions, mask, past, embeds, labels)
        if embeds is None
        else (None, None, kept[0], past, *kept[1:])
    )


@torch.no_grad()
@functools.wraps(OURS)
def disguised(*arguments: Any) -> Any:
    """A replacement that bears the name and the module of what it replaces."""
    return prune(*arguments)


WAYS: dict[str, Patch] = {
    "mixin": lambda _, patch: patch.setattr(LlavaMetaForCausalLM, PREPARE, prune),
    "class": lambda _, patch: patch.setattr(LlavaLlamaForCausalLM, PREPARE, prune, raising=False),
    "instance": lambda model, _: setattr(model, PREPARE, MethodType(prune, model)),
    "partial": lambda model, _: setattr(model, PREPARE, functools.partial(prune, model)),
    "wrapper": lambda _, patch: patch.setattr(LlavaMetaForCausalLM, PREPARE, disguised),
    "subclass": lambda model, _: setattr(
        model, "__class__", type("Pruned", (LlavaLlamaForCausalLM,), {PREPARE: prune})
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_splice_is_called_wherever_the_model_reads_images(
    way: str,
    loaded: Loaded,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = loaded.model
    enable_packing(model.config)
    WAYS[way](model, monkeypatch)
    texts = []
    for request in requests[:-1]:
        inputs = inputs_of(loaded, request)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == -200, -100)
        prepared: Any = OURS(model, inputs["input_ids"], None, None, None, labels, inputs["images"])
        whole, aligned = prepared[4:]
        embeds, mask = whole[:, ::2], torch.ones_like(aligned[:, ::2])
        with torch.no_grad():
            logits = model(inputs_embeds=embeds).logits
            assert torch.equal(model(**inputs).logits, logits)
            loss = next_token_loss(logits, aligned[:, ::2])
            for settings in ({}, {"recipe": SHORTCUTS}, {"recipe": Recipe(sparse_loss=True)}):
                row = {**inputs, "labels": labels, "attention_mask": torch.ones_like(labels)}
                torch.testing.assert_close(model(**row, **settings).loss, loss)
        alone = GenerationMixin.generate(model, inputs_embeds=embeds, attention_mask=mask, **GREEDY)
        images = {"images": inputs["images"]}
        assert torch.equal(model.generate(inputs["input_ids"], **images, **GREEDY), alone)
        texts.append(loaded.tokenizer.decode(alone[0], skip_special_tokens=True).strip())
    assert answers(loaded, requests)[:-1] == texts
    assert f"the model's {PREPARE} is replaced" in caplog.text


# ---- other replacements


def doubled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement of a method that computes something else."""
    return lambda self, *arguments, **settings: 2 * function(self, *arguments, **settings)


def cut(function: Callable[..., SplicedBatch]) -> Callable[..., SplicedBatch]:
    """A replacement of `splice_images` that drops the first positions."""

    def shorter(self: Any, *arguments: Any, **settings: Any) -> SplicedBatch:
        whole = function(self, *arguments, **settings)
        tensors = (whole.embeds, whole.labels, whole.mask, whole.position_ids)
        return SplicedBatch(*(tensor[:, 5:] for tensor in tensors))

    return shorter


def last_layer(tower: Any, outputs: Any) -> torch.Tensor:
    """Read a layer that the selected one does not need, as methods that mix several layers do."""
    return outputs.hidden_states[-1][:, 1:]


def call_clip(tower: Any, images: torch.Tensor) -> torch.Tensor:
    """A vision tower's forward pass as published methods write it, with attention of its CLIP."""
    outputs = tower.vision_tower(
        images.to(device=tower.device, dtype=tower.dtype), output_hidden_states=True, output_attentions=True
    )
    weights = outputs.attentions[-2].mean(dim=1)[:, 0, 1:]
    best = weights.topk(tower.num_patches // 2).indices
    features = tower.feature_select(outputs)
    return features.gather(1, best[..., None].expand(-1, -1, features.shape[-1])).to(images.dtype)


ENCODE = CLIPEncoder.forward


def tower_of(model: Any) -> Any:
    return model.get_vision_tower()


def read_keys(tower: Any, images: torch.Tensor) -> torch.Tensor:
    """Keep patches by keys of the last layer, read by a hook, as PruMerge does; their number varies."""
    keys: list[torch.Tensor] = []
    layer = tower.vision_tower.vision_model.encoder.layers[-1]
    handle = layer.self_attn.k_proj.register_forward_hook(lambda module, inputs, output: keys.append(output))
    outputs = tower.vision_tower(images.to(device=tower.device, dtype=tower.dtype), output_hidden_states=True)
    handle.remove()
    likeness = (keys[0][:, :1] * keys[0][:, 1:]).sum(-1)[0]
    kept = likeness.topk(2 + int((likeness > likeness.mean()).sum()) // 2).indices
    return tower.feature_select(outputs)[:, kept].to(images.dtype)


ATTEND = CLIPAttention.forward


def attend_and_keep(self: Any, hidden_states: torch.Tensor, *rest: Any, **settings: Any) -> Any:
    """An attention that leaves something behind in its layer, as VisionZip's does."""
    self.metric = self.k_proj(hidden_states)
    return ATTEND(self, hidden_states, *rest, **settings)


def zip_patches(tower: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and what was kept, as VisionZip's tower does: not what the original's returns."""
    outputs = tower.vision_tower(
        images.to(device=tower.device, dtype=tower.dtype), output_hidden_states=True, output_attentions=True
    )
    count = tower.vision_tower._info["dominant"]
    kept = outputs.attentions[-2].sum(dim=1)[:, 0, 1:].topk(count).indices
    metric = tower.vision_tower.vision_model.encoder.layers[-2].self_attn.metric
    merged = (metric.mean(-1, keepdim=True) * outputs.hidden_states[-2]).mean(1, keepdim=True)
    features = outputs.hidden_states[-2][:, 1:]
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    return torch.cat([chosen, merged], dim=1).to(images.dtype), kept


def prepare_zipped(
    model: Any, ids: Any, positions: Any, mask: Any, past: Any, labels: Any, images: Any, sizes: Any = None
) -> Any:
    """The original's preparation around such a tower, for one prompt with one image in front."""
    if images is None or ids.shape[1] == 1:
        return ids, positions, mask, past, None, labels
    features, _ = model.get_model().get_vision_tower().forward(images)
    features = model.get_model().mm_projector(features)
    place = int((ids[0] == -200).nonzero())
    text = model.get_model().embed_tokens(ids[0, torch.arange(ids.shape[1]) != place])
    embeds = torch.cat([text[:place], features[0], text[place:]])[None]
    mask = None if mask is None else mask.new_ones(embeds.shape[:2])
    return None, positions, mask, past, embeds, labels


def zip_model(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Replace what VisionZip replaces, and in its order."""
    clip = tower_of(model).vision_tower
    clip.__class__ = type("Zipping", (clip.__class__,), {})
    clip._info = {"dominant": 5}
    patch.setattr(CLIPAttention, "forward", attend_and_keep)
    patch.setattr(CLIPVisionTower, "forward", zip_patches)
    patch.setattr(LlavaMetaForCausalLM, PREPARE, prepare_zipped)


CHANGES: dict[str, Patch] = {
    "all that VisionZip replaces": zip_model,
    "the tower, with hooks": lambda _, patch: patch.setattr(CLIPVisionTower, "forward", read_keys),
    "the class's encode_images": lambda _, patch: patch.setattr(
        LlavaMetaForCausalLM, "encode_images", doubled(LlavaMetaForCausalLM.encode_images)
    ),
    "the instance's encode_images": lambda model, _: setattr(
        model, "encode_images", MethodType(doubled(LlavaMetaForCausalLM.encode_images), model)
    ),
    "the tower's class": lambda _, patch: patch.setattr(CLIPVisionTower, "forward", call_clip),
    "the tower": lambda model, _: setattr(tower_of(model), "forward", MethodType(call_clip, tower_of(model))),
    "a tower's subclass": lambda model, _: setattr(
        tower_of(model), "__class__", type("Pruned", (CLIPVisionTower,), {"forward": call_clip})
    ),
    "feature_select": lambda _, patch: patch.setattr(CLIPVisionTower, "feature_select", last_layer),
    "the tower's feature_select": lambda model, _: setattr(
        tower_of(model), "feature_select", MethodType(last_layer, tower_of(model))
    ),
    "CLIP's encoder": lambda _, patch: patch.setattr(
        CLIPEncoder, "forward", lambda self, inputs_embeds, **rest: ENCODE(self, 2 * inputs_embeds, **rest)
    ),
    "a hook in CLIP": lambda model, _: (
        tower_of(model)
        .vision_tower.vision_model.encoder.layers[1]
        .register_forward_hook(lambda layer, inputs, output: 2 * output)
    ),
    "the projector": lambda model, _: setattr(
        model.get_model(), "mm_projector", torch.nn.Sequential(model.projector, torch.nn.Softmax(dim=1))
    ),
    "the decoder's layers": lambda _, patch: patch.setattr(
        LlamaDecoderLayer, "forward", doubled(LlamaDecoderLayer.forward)
    ),
    "splice_images": lambda _, patch: patch.setattr(
        LlavaMetaForCausalLM, "splice_images", cut(LlavaMetaForCausalLM.splice_images)
    ),
    "generate": lambda _, patch: patch.setattr(
        LlavaLlamaForCausalLM, "generate", lambda self, ids, **_: torch.full((len(ids), 3), 300)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_engine_answers_as_the_changed_model_generates(
    change: str, loaded: Loaded, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answers(loaded, requests)
    CHANGES[change](loaded.model, monkeypatch)
    texts = []
    for request in requests[:-1]:
        inputs = inputs_of(loaded, request)
        ids = loaded.model.generate(inputs["input_ids"], images=inputs["images"], **GREEDY)
        texts.append(loaded.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    assert answers(loaded, requests)[:-1] == texts
    assert texts != before[:-1]
    assert answers(loaded, requests[:1], batch_size=1) == texts[:1]


class ForksTower(torch.nn.Module):
    """A tower as a fork writes its own, with the original's methods only."""

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded, self.vision_tower_name = False, vision_tower
        self.select_layer, self.select_feature = args.mm_vision_select_layer, "patch"

    def load_model(self, device_map: Any = None) -> None:
        self.image_processor = CLIPImageProcessorPil.from_pretrained(self.vision_tower_name)
        self.vision_tower = CLIPVisionModel.from_pretrained(self.vision_tower_name)
        self.is_loaded = True

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.vision_tower(images.to(self.vision_tower.dtype), output_hidden_states=True)
        return outputs.hidden_states[self.select_layer][:, 1::3].to(images.dtype)

    @property
    def hidden_size(self) -> int:
        return int(self.vision_tower.config.hidden_size)

    @property
    def num_patches(self) -> int:
        return 16


def test_a_forks_tower_takes_the_place_of_ours(
    golden: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.model.multimodal_encoder.builder.CLIPVisionTower", ForksTower)
    given = (golden / tiny.PROJECTOR, golden / tiny.LANGUAGE)
    loaded = Loaded(*load_pretrained_model(*given, device="cpu", dtype="float32"))
    assert type(tower_of(loaded.model)) is ForksTower
    inputs = inputs_of(loaded, requests[0])
    ids = loaded.model.generate(inputs["input_ids"], images=inputs["images"], **GREEDY)
    embeds = loaded.model.splice_images(inputs["input_ids"], None, None, inputs["images"]).embeds
    assert embeds.shape[1] == inputs["input_ids"].shape[1] - 1 + len(range(1, 17, 3))
    wanted = loaded.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert answers(loaded, requests)[0] == wanted


def test_an_unchanged_model_is_known_as_such(loaded: Loaded, requests: list[Request]) -> None:
    model = loaded.model
    assert find_change(model) is None
    model(**inputs_of(loaded, requests[0]), output_hidden_states=True)  # transformers leaves hooks
    tower_of(model).vision_tower(torch.zeros(1, 3, 56, 56), output_hidden_states=True)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert find_change(model) is None


@pytest.mark.slow
@pytest.mark.parametrize("way", ["mixin", "instance"])
def test_training_takes_no_shortcut_past_a_replaced_splice(
    way: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden)
    argv = tiny.fields(golden / "viii_lora.json")["argv"]
    flags = [*argv, "--output_dir", str(tmp_path), "--recipe", "fast", "--max_steps", "1"]
    losses = {}
    for kind in ("whole", "pruned"):
        assembled = assemble(*parse_arguments([*flags, "--save_strategy", "no"]))
        base = assembled.model.get_base_model()
        if kind == "pruned":
            WAYS[way](base, monkeypatch)
        trainer = LLaVATrainer(
            assembled.model,
            assembled.training_args,
            train_dataset=assembled.dataset,
            data_collator=assembled.collator,
        )
        batch = trainer._prepare_inputs(assembled.collator([assembled.dataset[0], assembled.dataset[1]]))
        labels, mask = batch["labels"], batch["attention_mask"]
        with torch.no_grad():
            prepared: Any = OURS(base, batch["input_ids"], None, mask, None, labels, batch["images"])
            mask, _, embeds, aligned = prepared[2:]
            step = 2 if kind == "pruned" else 1
            logits = base(inputs_embeds=embeds[:, ::step], attention_mask=mask[:, ::step]).logits
            wanted = next_token_loss(logits, aligned[:, ::step])
        trainer.current_gradient_accumulation_steps = 1  # train() sets it
        losses[kind] = float(trainer.training_step(assembled.model, batch))
        assert losses[kind] == pytest.approx(float(wanted), abs=1e-4)
        assert trainer.recipe.changes_forward == (kind == "whole")
    assert abs(losses["whole"] - losses["pruned"]) > 1e-3


# ---- the vision tower, called as the original's


def test_the_towers_clip_is_called_as_the_originals(loaded: Loaded) -> None:
    tower = tower_of(loaded.model)
    clip, images = tower.vision_tower, torch.randn(2, 3, 56, 56)
    usual = clip.config._attn_implementation
    outputs = clip(images, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == clip.config.num_hidden_layers + 1
    assert torch.stack(outputs.attentions).shape[:2] == (clip.config.num_hidden_layers, 2)
    assert clip.config._attn_implementation == usual != "eager"
    torch.testing.assert_close(tower.feature_select(outputs), tower(images), atol=1e-5, rtol=1e-5)
    assert tower(images).shape == (2, tower.num_patches, tower.hidden_size)
    assert (clip.dtype, clip.device) == (tower.dtype, tower.device) == (torch.float32, torch.device("cpu"))
    assert clip.vision_model.encoder.layers[-1].self_attn is clip.encoder.layers[-1].self_attn
    assert [name for name in tower.state_dict() if not name.startswith("vision_tower.vision_model.")] == []
    assert tower([images[0], images[1]])[1].shape == (1, tower.num_patches, tower.hidden_size)
    tower.select_feature = "cls_patch"
    assert tower.feature_select(outputs).shape == tower(images).shape == (2, 17, tower.hidden_size)


def test_padding_is_cut_off_as_in_the_original() -> None:
    tensor = torch.arange(24 * 24).view(1, 24, 24)
    assert torch.equal(unpad_image(tensor, (100, 50)), tensor[:, 6:18])
    assert torch.equal(unpad_image(tensor, (50, 100)), tensor[:, :, 6:18])
    assert unpad_image(tensor, (7, 7)).shape == (1, 24, 24)


# ---- another language model, with its own config


class QwenModel(LlavaMetaModel, Qwen2Model):
    """Written as forks write it."""

    config_class = Qwen2Config


class Qwen(Qwen2ForCausalLM, LlavaMetaForCausalLM):
    """Written as forks write it, with the original's forward and generate."""

    def __init__(self, config: Qwen2Config) -> None:
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = QwenModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> QwenModel:
        return self.model

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        images: Any = None,
        image_sizes: Any = None,
        **rest: Any,
    ) -> Any:
        if inputs_embeds is None:
            given = (input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes)
            prepared = self.prepare_inputs_labels_for_multimodal(*given)
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = prepared
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, **rest
        )

    @torch.no_grad()
    def generate(self, inputs: Any = None, images: Any = None, image_sizes: Any = None, **rest: Any) -> Any:
        given = (inputs, None, None, None, None, images, image_sizes)
        embeds = self.prepare_inputs_labels_for_multimodal(*given)[4]
        return super().generate(inputs_embeds=embeds, **rest)


@pytest.mark.parametrize("merge", ["flat", "spatial_unpad"])
def test_another_language_model_reads_images_with_its_own_config(golden: Path, merge: str) -> None:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, **heads)
    assert Qwen(config).get_vision_tower() is None
    config.mm_vision_tower, config.mm_hidden_size = str(golden / tiny.TOWER), 64
    config.mm_vision_select_layer = -2
    if merge != "flat":
        config.mm_patch_merge_type = merge
    model = Qwen(config).eval()
    tower_of(model).load_model()
    ids, images = torch.tensor([[5, 6, -200, 7, 8]]), torch.randn(1, 1, 3, 56, 56)
    outputs = model(ids, labels=ids.clamp(min=0), images=list(images), image_sizes=[(56, 56)])
    length = 4 + model.image_positions
    assert outputs.logits.shape == (1, length, config.vocab_size)
    assert outputs.loss.isfinite()
    assert model.generate(ids, images=list(images), image_sizes=[(56, 56)], **GREEDY).shape[1] <= 4
    assert find_change(model) is not None
    outputs.loss.backward()
    assert model.projector.weight.grad.abs().sum() > 0


def test_a_config_has_the_fields_of_its_checkpoint_only(golden: Path, loaded: Loaded) -> None:
    config = LlavaConfig.from_pretrained(golden / tiny.LANGUAGE)
    for name in ("mm_vision_tower", "mm_patch_merge_type", "max_sequence_length", "image_aspect_ratio"):
        assert not hasattr(config, name)
    config.mm_projector_lr, config.image_aspect_ratio = None, "pad"
    assert "mm_projector_lr" not in config.to_diff_dict()
    assert config.to_diff_dict()["image_aspect_ratio"] == "pad"
    assert getattr(loaded.model.config, "mm_patch_merge_type", "flat") == "flat"


# ---- the calls of two evaluation programs


def test_the_calls_of_lmms_eval(golden: Path, loaded: Loaded, requests: list[Request]) -> None:
    given = (golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, get_model_name_from_path("a/llava-v1.5-7b"))
    settings: dict[str, Any] = {"device_map": "cpu", "attn_implementation": "sdpa"}
    with pytest.raises(TypeError, match="multimodal"):
        load_pretrained_model(*given, multimodal=True, **settings)
    tokenizer, model, processor, length = load_pretrained_model(*given, **settings)
    model.eval()
    model.tie_weights()
    assert (model.dtype, length) == (torch.float16, loaded.context_length)
    if "image_aspect_ratio" not in model.config.__dict__:
        model.config.image_aspect_ratio = "pad"

    visual = read_image(golden / "images/a_640x480.png")
    pixels = process_images([visual], processor, model.config).to(dtype=torch.float16)
    contexts = []
    for question in ("<image>\nIs it so?", "<image>\nName all of the things that are red. "):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        contexts.append(tokenizer_image_token(prompt, tokenizer, -200, return_tensors="pt"))
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batch = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True, padding_value=padding)
    settings = {"do_sample": False, "temperature": 0, "top_p": None, "num_beams": 1, "max_new_tokens": 4}
    found = model.generate(
        batch,
        attention_mask=batch.ne(padding),
        pad_token_id=padding,
        images=torch.cat([pixels, pixels]),
        image_sizes=[visual.size, visual.size],
        use_cache=True,
        **settings,
    )
    assert len(tokenizer.batch_decode(found, skip_special_tokens=True)) == 2

    ids = tokenizer_image_token(f"{prompt} yes</s>", tokenizer, -200, return_tensors="pt")[None]
    labels = ids.clone()
    labels[0, : len(contexts[1])] = -100
    with torch.inference_mode():
        outputs = model(
            input_ids=ids, labels=labels, images=pixels, use_cache=True, image_sizes=[list(visual.size)]
        )
        logits, loss = outputs["logits"].float(), outputs["loss"]
    assert logits.shape[1] == ids.shape[1] - 1 + tower_of(model).num_patches
    count = int((labels != -100).sum())
    wanted = torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], ids[0, -count:])
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3)


def test_the_calls_of_vlmevalkit(golden: Path) -> None:
    tokenizer, model, processor, _ = load_pretrained_model(
        model_path=str(golden / tiny.PROJECTOR),
        model_base=str(golden / tiny.LANGUAGE),
        model_name="llava-v1.5-7b",
        device_map="cpu",
    )
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float16}
    image = read_image(golden / "images/b_333x500.png")

    class Arguments:
        image_aspect_ratio = "pad"

    pixels = process_images([image, image], processor, Arguments()).to("cpu", dtype=torch.float16)
    prompt = "A chat. USER:  <image>  <image> Are they the same? ASSISTANT: "
    ids = tokenizer_image_token(prompt, tokenizer, -200, return_tensors="pt").unsqueeze(0)
    for images, asked in ((pixels, ids), (None, ids[ids != -200][None])):
        with torch.inference_mode():
            output = model.generate(
                asked,
                images=images,
                stopping_criteria=[KeywordsStoppingCriteria(["</s>"], tokenizer, asked)],
                do_sample=False,
                temperature=0,
                max_new_tokens=4,
                top_p=None,
                num_beams=1,
                use_cache=True,
            )
        assert 1 <= output.shape[1] <= 4
        assert isinstance(tokenizer.batch_decode(output, skip_special_tokens=True)[0], str)


# ---- logits that are not finite


FAULTS = {
    "lm_head.weight": float("nan"),
    "model.mm_projector.2.bias": float("inf"),
    "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight": float("nan"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"temperature": 1.0}, {"num_beams": 2}])
def test_a_broken_weight_ends_every_way_of_answering(
    name: str, settings: dict[str, Any], loaded: Loaded, requests: list[Request]
) -> None:
    with torch.no_grad():
        loaded.model.get_parameter(name).view(-1)[3] = FAULTS[name]
    rest = {key: value for key, value in settings.items() if key != "batch_size"}
    generation = Generation(max_new_tokens=4, **rest)
    engine = Engine(loaded, generation, batch_size=settings.get("batch_size"))
    with raises_code("non-finite-logits", CheckpointError) as caught:
        list(engine.answer(requests[:-1]))
    assert f" {name} holds" in str(caught.value)
    with raises_code("non-finite-logits", CheckpointError):
        engine.reply_streaming(requests[0], None)
    loaded.model.encode_images = MethodType(doubled(LlavaMetaForCausalLM.encode_images), loaded.model)
    with raises_code("non-finite-logits", CheckpointError):
        list(engine.answer(requests[:1]))


def test_an_overflow_names_the_layer(loaded: Loaded, requests: list[Request]) -> None:
    layer = loaded.model.get_decoder().layers[2].mlp.down_proj
    with torch.no_grad():
        layer.weight.fill_(3e38)
    with raises_code("non-finite-logits", CheckpointError) as caught:
        answers(loaded, requests)
    assert "model.layers.2.mlp.down_proj overflows in float32" in str(caught.value)
    assert not loaded.model.get_decoder().layers[0]._forward_hooks


def test_a_command_ends_with_code_2_where_the_weights_are_broken(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.projector_only(tmp_path, golden)
    path = folder / "mm_projector.bin"
    tensors = torch.load(path, weights_only=True)
    next(iter(tensors.values()))[:] = float("nan")
    torch.save(tensors, path)
    flags = SimpleNamespace(
        model_path=str(folder),
        model_base=str(golden / tiny.LANGUAGE),
        image_file=str(golden / "images/a_640x480.png"),
        query="Why?",
        conv_mode="vicuna_v1",
    )
    with pytest.raises(SystemExit) as stopped:
        run(lambda: eval_model(flags))
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(folder) in line
    assert "model.mm_projector.0.weight" in line
