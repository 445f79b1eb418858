"""Every layout of published and self-trained LLaVA-1.5 checkpoints loads, judged by its files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import is_flash_attn_2_available

from llava.errors import CheckpointError, SettingsError
from llava.image_reading import read_image
from llava.images import process_images
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.checkpoint import detect_kind, strip_wrappers
from llava.model.loading.placement import Placement, keep_on_one_gpu
from support import tiny_checkpoints as tiny
from support.errors import raises_code

Build = Callable[[Path, Path], Path]

WHOLE: dict[str, Build] = {
    "released": tiny.released,
    "self_trained": tiny.self_trained,
    "self_trained_shards": partial(tiny.self_trained, shards=2),
    "tower_keys_of_transformers_5": partial(tiny.self_trained, prefix="model.vision_tower.vision_tower."),
}
OVER_A_BASE: dict[str, Build] = {"projector": tiny.projector_only}
ADAPTERS: dict[str, Build] = {
    "peft_0.7": tiny.adapter,
    "peft_0.4": partial(tiny.adapter, suffix=".bin", model_type="llava"),
    "short_prefix": partial(tiny.adapter, prefix="base_model.model."),
    "no_prefix": partial(tiny.adapter, prefix="model."),
    "merged_prefix": partial(tiny.adapter, prefix="model.model."),
}


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()


def image_logits(golden: Path, loaded: tuple[Any, ...], ids: list[int]) -> np.ndarray:
    """Logits of a prompt about the first golden image, by a loaded model."""
    _, model, processor, _ = loaded
    pixels = process_images([read_image(golden / "images/a_640x480.png")], processor, model.config)
    with torch.no_grad():
        return model(torch.tensor([ids]), images=pixels).logits[0].numpy()


def golden_model(golden: Path) -> tuple[list[int], np.ndarray]:
    """Ids and logits of the golden model with the stage-1 projector."""
    ids = tiny.fields(golden / "v_vi_vii_model.json")["input_ids"][0]
    return ids, np.load(golden / "v_vi_vii_model.npz")["logits_sample0_full"]


def golden_adapter(golden: Path) -> tuple[list[int], np.ndarray]:
    """Ids and logits of the golden model with the LoRA adapter."""
    ids = tiny.fields(golden / "v_vi_vii_model.json")["generate"][0]["input_ids"]
    return ids, np.load(golden / "x_merge.npz")["C_fp32_img_logits"]


@pytest.mark.parametrize("layout", [*WHOLE, *OVER_A_BASE])
def test_models_and_projectors_load_to_the_golden_logits(layout: str, golden: Path, tmp_path: Path) -> None:
    # The folder's name suggests another kind, but files decide.
    folder = (WHOLE | OVER_A_BASE)[layout](tmp_path / "vicuna-lora", golden)
    base = golden / tiny.LANGUAGE if layout in OVER_A_BASE else None
    loaded = load_pretrained_model(folder, base, "vicuna-lora", device="cpu", dtype="float32")
    ids, logits = golden_model(golden)
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 5e-5
    tokenizer, _, processor, context_length = loaded
    assert (len(tokenizer), context_length, processor.crop_size["height"]) == (2048, 4096, 56)


@pytest.mark.parametrize("layout", ADAPTERS)
def test_adapters_load_to_the_golden_logits(layout: str, golden: Path, tmp_path: Path) -> None:
    folder = ADAPTERS[layout](tmp_path / "experiment7", golden)
    loaded = load_pretrained_model(folder, golden / tiny.LANGUAGE, device="cpu", dtype="float32")
    ids, logits = golden_adapter(golden)
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 5e-5
    assert type(loaded[1]) is LlavaLlamaForCausalLM


def test_a_bf16_adapter_as_published_loads(golden: Path, tmp_path: Path) -> None:
    folder = tiny.adapter(tmp_path / "x", golden, suffix=".bin", dtype=torch.bfloat16, model_type="llava")
    loaded = load_pretrained_model(folder, golden / tiny.LANGUAGE, device="cpu", dtype="float32")
    ids, logits = golden_adapter(golden)
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 0.05
    assert loaded[1].dtype == torch.float32


def test_an_adapter_over_a_llava_model_takes_the_tokenizer_it_brings(golden: Path, tmp_path: Path) -> None:
    base = tiny.self_trained(tmp_path / "base", golden)
    folder = tiny.adapter(tmp_path / "task-lora", golden)
    tiny.write_tokenizer(folder, golden)
    for name in tiny.TOKENIZER_FILES:
        (base / name).unlink()
    ids, logits = golden_adapter(golden)
    loaded = load_pretrained_model(folder, base, device="cpu", dtype="float32")
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 5e-5


def test_the_base_that_an_adapter_names_is_used_and_logged(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(golden / tiny.LANGUAGE, tmp_path / "models/base")
    folder = tiny.adapter(tmp_path / "runs/mine", golden, named_base="models/base")
    with caplog.at_level(logging.INFO, "llava"):
        loaded = load_pretrained_model(folder, device="cpu", dtype="float32")
    assert "models/base" in caplog.text
    ids, logits = golden_adapter(golden)
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 5e-5


def test_a_checkpoint_of_a_run_finds_the_runs_config(golden: Path, tmp_path: Path) -> None:
    run = tiny.adapter(tmp_path / "run", golden)
    checkpoint = run / "checkpoint-5"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"):
        shutil.move(run / name, checkpoint)
    loaded = load_pretrained_model(checkpoint, golden / tiny.LANGUAGE, device="cpu", dtype="float32")
    ids, logits = golden_adapter(golden)
    assert np.abs(image_logits(golden, loaded, ids) - logits).max() < 5e-5


def test_a_full_models_base_is_ignored_with_a_warning(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.self_trained(tmp_path / "full", golden)
    load_pretrained_model(folder, "no/such-base", device="cpu", dtype="float32")
    assert "no/such-base" in caplog.text


def test_an_adapter_wins_over_full_weights_in_its_folder(golden: Path, tmp_path: Path) -> None:
    folder = tiny.adapter(tmp_path / "zero3", golden)
    save_file(tiny.multimodal(golden), folder / "model.safetensors")
    assert detect_kind(folder) == "adapter"


def test_weights_in_older_formats_load(golden: Path, tmp_path: Path) -> None:
    tensors = tiny.multimodal(golden)
    ids, logits = golden_model(golden)
    for kind in ("no_metadata", "torch_1.5"):
        folder = tmp_path / kind
        tiny.write_config(folder, golden, tiny.PROJECTOR)
        tiny.write_tokenizer(folder, golden)
        if kind == "no_metadata":
            save_file(tensors, folder / "model.safetensors")
        else:
            torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        found = image_logits(golden, load_pretrained_model(folder, device="cpu", dtype="float32"), ids)
        assert np.abs(found - logits).max() < 5e-5, kind


def test_a_plain_language_model_loads_without_an_image_processor(golden: Path) -> None:
    tokenizer, model, processor, context_length = load_pretrained_model(
        golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )
    assert (processor, context_length, len(tokenizer)) == (None, 4096, 2048)
    assert type(model).__name__ == "LlamaForCausalLM"


def openai_clip(folder: Path, golden: Path) -> Path:
    """openai/clip-vit-large-patch14-336's layout: text and vision in one .bin, one config for both."""
    vision = tiny.fields(golden / tiny.TOWER / "config.json")
    config = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 64}
    both = config | {"vision_config": vision, "text_config": {"model_type": "clip_text_model"}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(both), encoding="utf-8")
    shutil.copy(golden / tiny.TOWER / "preprocessor_config.json", folder)
    tensors = load_file(golden / tiny.TOWER / "model.safetensors")
    tensors |= {"logit_scale": torch.ones(()), "visual_projection.weight": torch.ones(64, 64)}
    tensors |= {"text_model.final_layer_norm.weight": torch.ones(512)}
    tensors |= {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_the_published_towers_layout_loads(golden: Path, tmp_path: Path) -> None:
    folder = tiny.self_trained(tmp_path / "model", golden)
    edit("config.json", mm_vision_tower="clip")(folder)
    tower = openai_clip(folder / "clip", golden)
    ids, logits = golden_model(golden)
    assert (
        np.abs(
            image_logits(golden, load_pretrained_model(folder, device="cpu", dtype="float32"), ids) - logits
        ).max()
        < 5e-5
    )
    tensors = torch.load(tower / "pytorch_model.bin", weights_only=True)
    del tensors["vision_model.pre_layrnorm.weight"]
    torch.save(tensors, tower / "pytorch_model.bin")
    with raises_code("missing-weights", CheckpointError) as caught:
        load_pretrained_model(folder, device="cpu", dtype="float32")
    assert "pre_layrnorm.weight" in str(caught.value)


def test_a_trained_tower_is_taken_from_the_checkpoint(golden: Path, tmp_path: Path) -> None:
    prefix = "model.vision_tower.vision_tower.vision_model."
    tensors = tiny.multimodal(golden, tower_prefix=prefix)
    tensors[prefix + "embeddings.position_ids"] = torch.arange(17)[None]
    name = prefix + "pre_layrnorm.weight"
    tensors[name] = tensors[name] * 2
    tiny.write_weights(tmp_path, tensors, suffix=".bin")
    tiny.write_config(tmp_path, golden, tiny.PROJECTOR, unfreeze_mm_vision_tower=True)
    tiny.write_tokenizer(tmp_path, golden)
    model = load_pretrained_model(tmp_path, device="cpu", dtype="float32")[1]
    assert torch.equal(model.state_dict()[name], tensors[name])


def test_image_tokens_of_a_checkpoint_keep_their_rows(golden: Path, tmp_path: Path) -> None:
    tensors = tiny.multimodal(golden)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.full((2, 128), 0.5, dtype=torch.float16)])
    tiny.write_weights(tmp_path, tensors, suffix=".safetensors")
    tiny.write_config(tmp_path, golden, tiny.PROJECTOR, vocab_size=2050, mm_use_im_start_end=True)
    tiny.write_tokenizer(tmp_path, golden)
    tokenizer, model, _, _ = load_pretrained_model(tmp_path, device="cpu", dtype="float32")
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [2048, 2049]
    assert torch.equal(model.lm_head.weight[2048:], torch.full((2, 128), 0.5))


@pytest.mark.parametrize(("rows", "tokens"), [(2048, 2048), (2049, 2049)])
def test_a_missing_patch_token_field_means_what_the_table_says(
    rows: int, tokens: int, golden: Path, tmp_path: Path
) -> None:
    tensors = tiny.multimodal(golden)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])[:rows]
    tiny.write_weights(tmp_path, tensors, suffix=".safetensors")
    tiny.write_config(tmp_path, golden, tiny.PROJECTOR, vocab_size=rows, mm_use_im_patch_token=None)
    tiny.write_tokenizer(tmp_path, golden)
    tokenizer, model, _, _ = load_pretrained_model(tmp_path, device="cpu", dtype="float32")
    assert (len(tokenizer), model.get_input_embeddings().weight.shape[0]) == (tokens, rows)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_quantised_models_answer_nearly_as_full_ones(
    bits: int, with_adapter: bool, golden: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    build, (ids, logits) = (
        (tiny.adapter, golden_adapter(golden))
        if with_adapter
        else (tiny.projector_only, golden_model(golden))
    )
    settings: Any = {f"load_{bits}bit": True, "device": "cpu", "dtype": "float32"}
    loaded = load_pretrained_model(build(tmp_path, golden), golden / tiny.LANGUAGE, **settings)
    found = image_logits(golden, loaded, ids)
    likeness = np.corrcoef(found.ravel(), logits.ravel())[0, 1]
    assert likeness > (0.9 if bits == 4 else 0.995)
    model = loaded[1]
    assert model.generate(torch.tensor([[1, 50, 60]]), max_new_tokens=3, do_sample=False).shape[1] <= 3
    for whole in (model.lm_head, model.model.mm_projector[0], model.get_vision_tower().vision_tower):
        assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    assert ("lora_A" in dict(model.named_parameters()).__repr__()) == with_adapter


def test_half_precision_gives_the_originals_merged_weights_to_the_bit(golden: Path) -> None:
    model = load_pretrained_model(
        golden / tiny.ADAPTER, golden / tiny.LANGUAGE, device="cpu", torch_dtype=torch.float16
    )[1]
    merged = np.load(golden / "x_merge.npz")
    names = [name for name in merged if name.startswith("merged_fp16/")]
    assert len(names) == 3
    for name in names:
        own = model.get_parameter(name.split("/")[1]).detach().numpy()
        assert np.array_equal(own, merged[name]), name
    ids = tiny.fields(golden / "v_vi_vii_model.json")["generate"][0]["input_ids"]
    tower = model.get_vision_tower()
    assert tower.dtype == torch.float16
    pixels = process_images(
        [read_image(golden / "images/a_640x480.png")], tower.image_processor, model.config
    )
    with torch.no_grad():
        found = model(torch.tensor([ids]), images=pixels.half()).logits[0].float().numpy()
    assert np.abs(found - merged["A_fp16_img_logits"]).max() < 2e-2


def test_the_towers_precision_can_be_chosen(golden: Path, tmp_path: Path) -> None:
    folder = tiny.projector_only(tmp_path, golden)
    model = load_pretrained_model(
        folder, golden / tiny.LANGUAGE, device="cpu", dtype="float16", vision_tower_dtype=torch.float32
    )[1]
    assert (model.dtype, model.get_vision_tower().dtype) == (torch.float16, torch.float32)
    ids = golden_model(golden)[0]
    assert np.isfinite(
        image_logits(golden, (None, model, model.get_vision_tower().image_processor, 0), ids)
    ).all()


def test_the_precision_is_the_originals_float16_on_every_device(golden: Path) -> None:
    for settings in ({"device": "cpu"}, {"device_map": "cpu"}, {"device": "cpu", "torch_dtype": None}):
        model = load_pretrained_model(golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, "llava", **settings)[1]
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float16}


def test_cuda_without_a_gpu_is_refused_only_when_asked_for(golden: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with raises_code("missing-gpu", SettingsError):
        load_pretrained_model(golden / tiny.LANGUAGE, device="cuda")
    model = load_pretrained_model(golden / tiny.LANGUAGE)[1]
    assert (model.device.type, model.dtype) == ("cpu", torch.float16)


@pytest.mark.parametrize(
    ("free_gib", "dtype", "placed"),
    [
        ([80, 80], torch.float16, {"": "cuda:0"}),
        ([10, 80], torch.float16, {"": "cuda:1"}),
        ([24, 24], torch.float32, "auto"),
        ([18, 18], torch.float16, "auto"),
        ([20], torch.float16, {"": "cuda:0"}),
    ],
)
def test_a_model_stays_on_one_gpu_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, free_gib: list[int], dtype: torch.dtype, placed: object
) -> None:
    """Made-up GPUs; a 7B model has 13.5 GiB of files."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(free_gib))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (free_gib[index] << 30, 80 << 30))
    placement = Placement(dtype, {"device_map": "auto"})
    keep_on_one_gpu(placement, int(13.5 * 2**30) * dtype.itemsize // 2)
    assert placement.arguments["device_map"] == placed
    asked_for = Placement(dtype, {"device_map": {"": "cuda:1"}})
    keep_on_one_gpu(asked_for, 1)
    assert asked_for.arguments["device_map"] == {"": "cuda:1"}


def test_loading_keeps_attention_from_kernels_that_plan_for_every_shape(golden: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_pretrained_model(golden / tiny.LANGUAGE, device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_contradicting_or_unknown_arguments_fail(golden: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load(**settings: Any) -> Any:
        return load_pretrained_model(golden / tiny.LANGUAGE, device="cpu", **settings)

    with raises_code("contradicting-flags", SettingsError):
        load(load_8bit=True, load_4bit=True)
    with raises_code("unknown-dtype", SettingsError):
        load(dtype="int7")
    for name in ("multimodal", "unknown"):
        with pytest.raises(TypeError, match=name):
            load(**{name: True})
    if not is_flash_attn_2_available():
        load(use_flash_attn=True)
        assert "flash-attn is not installed" in caplog.text
    assert (
        load(torch_dtype=torch.bfloat16, device_map=None, low_cpu_mem_usage=True)[1].dtype == torch.bfloat16
    )


@pytest.mark.parametrize("kind", ["full", "projector", "adapter", "language model"])
def test_fields_of_the_config_can_be_given(kind: str, golden: Path, tmp_path: Path) -> None:
    place: tuple[Path, Path | None] = (golden / tiny.LANGUAGE, None)
    if kind != "language model":
        build = {"full": tiny.self_trained, "projector": tiny.projector_only, "adapter": tiny.adapter}[kind]
        folder = build(tmp_path / "model", golden)
        place = folder, None if kind == "full" else golden / tiny.LANGUAGE
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    given: dict[str, Any] = {"use_cache": False, "rms_norm_eps": 1e-3, "rope_scaling": scaling}
    if kind != "language model":
        given |= {"mm_vision_select_layer": -3, "image_aspect_ratio": "pad", "max_sequence_length": 99}
    _, model, _, length = load_pretrained_model(*place, device="cpu", attn_implementation="eager", **given)
    assert {name: getattr(model.config, name) for name in given} == given
    assert model.config._attn_implementation == "eager"
    assert model.model.norm.variance_epsilon == 1e-3
    assert float(model.model.rotary_emb.inv_freq[0]) == pytest.approx(0.5)
    if kind != "language model":
        assert (model.get_vision_tower().select_layer, length) == (-3, 99)
        with pytest.raises(TypeError, match="vocab_size"):
            load_pretrained_model(*place, device="cpu", vocab_size=100)


def test_another_revision_than_main_is_refused() -> None:
    with raises_code("revision", SettingsError):
        load_pretrained_model("team/model", device="cpu", revision="v2")


def broken(
    folder: Path, golden: Path, how: Callable[[Path], object], build: Build = tiny.self_trained
) -> Path:
    how(build(folder, golden))
    return folder


def cut(name: str, size: int = 5000) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(tiny.fields(folder / name) | changes))


def unpicklable(folder: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "was-run",))

    torch.save({"model.mm_projector.0.weight": Harmful()}, folder / "mm_projector.bin")


def tower_with_code(folder: Path) -> None:
    tower = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    shutil.copytree(tower, folder / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    unpicklable(folder)
    shutil.move(folder / "mm_projector.bin", folder / "clip/pytorch_model.bin")
    edit("config.json", mm_vision_tower="clip")(folder)


def without_projector(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensors[name] for name in tensors if "mm_proj" not in name}, folder / "model.safetensors"
    )


def widen_tower(folder: Path) -> None:
    """Name a tower of 32 features in place of the one of 64."""
    settings: Any = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tower = folder.parent / "tower"
    CLIPVisionModel(CLIPVisionConfig(**settings, image_size=56, patch_size=14)).save_pretrained(tower)
    CLIPImageProcessorPil().save_pretrained(tower)
    edit("config.json", mm_vision_tower=str(tower))(folder)


def harmful_shard(folder: Path) -> None:
    unpicklable(folder)
    shutil.move(folder / "mm_projector.bin", folder / SHARD)


SHARD = "pytorch_model-00002-of-00003.bin"
# What is built, how it is damaged, the error's code, and what its message names.
DAMAGE: dict[str, tuple[Build, Callable[[Path], object], str, str]] = {
    "truncated_safetensors": (
        tiny.self_trained,
        cut("model.safetensors"),
        "unreadable-weights",
        "model.safetensors",
    ),
    "last_bytes_gone": (
        tiny.self_trained,
        lambda folder: cut("model.safetensors", (folder / "model.safetensors").stat().st_size - 9)(folder),
        "unreadable-weights",
        "model.safetensors",
    ),
    "stub_of_safetensors": (
        tiny.self_trained,
        cut("model.safetensors", 4),
        "unreadable-weights",
        "model.safetensors",
    ),
    "lfs_pointer": (
        tiny.released,
        lambda folder: (folder / SHARD).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "lfs-pointer",
        SHARD,
    ),
    "empty_bin": (tiny.released, cut(SHARD, 0), "unreadable-weights", SHARD),
    "code_in_a_shard": (tiny.released, harmful_shard, "unsafe-pickle", SHARD),
    "truncated_bin": (tiny.released, cut(SHARD), "unreadable-weights", SHARD),
    "missing_shard": (tiny.released, drop(SHARD), "missing-shards", SHARD),
    "no_weights": (tiny.self_trained, drop("model.safetensors"), "missing-model", "config.json"),
    "no_config": (tiny.self_trained, drop("config.json"), "missing-config", "config.json"),
    "config_no_json": (tiny.self_trained, cut("config.json", 30), "not-json", "config.json:1"),
    "no_tower_named": (
        tiny.self_trained,
        edit("config.json", mm_vision_tower=None),
        "missing-vision-tower",
        "llava_llama",
    ),
    "tower_no_clip": (
        tiny.self_trained,
        lambda folder: edit("config.json", mm_vision_tower=str(folder))(folder),
        "not-a-clip-model",
        "model",
    ),
    "tower_missing": (
        tiny.self_trained,
        edit("config.json", mm_vision_tower="/no/such/tower"),
        "unknown-model",
        "/no/such/tower",
    ),
    "odd_projector": (
        tiny.self_trained,
        edit("config.json", mm_projector_type="mlp"),
        "unknown-projector-type",
        "'mlp'",
    ),
    "odd_model_type": (
        tiny.self_trained,
        edit("config.json", model_type="mpt"),
        "unknown-model-type",
        "'mpt'",
    ),
    "no_layer": (
        tiny.self_trained,
        edit("config.json", mm_vision_select_layer=None),
        "missing-field",
        "mm_vision_select_layer",
    ),
    "no_width": (
        tiny.self_trained,
        edit("config.json", mm_hidden_size=None),
        "missing-field",
        "mm_hidden_size",
    ),
    "other_tower": (tiny.self_trained, widen_tower, "tower-mismatch", "32 features"),
    "huggingface_llava": (
        tiny.self_trained,
        edit("config.json", text_config={}),
        "huggingface-format",
        "text_config",
    ),
    "no_tokenizer": (tiny.self_trained, drop("tokenizer.model"), "missing-tokenizer", "tokenizer.model"),
    "no_projector": (tiny.self_trained, without_projector, "missing-projector", "mm_projector"),
    "adapter_gone": (
        tiny.adapter,
        drop("adapter_model.safetensors"),
        "missing-weights",
        "adapter_model.safetensors",
    ),
    "adapter_cut": (
        tiny.adapter,
        cut("adapter_model.safetensors"),
        "unreadable-weights",
        "adapter_model.safetensors",
    ),
    "adapter_no_lora": (tiny.adapter, edit("adapter_config.json", peft_type="IA3"), "not-lora", "IA3"),
    "no_non_lora": (
        tiny.adapter,
        drop("non_lora_trainables.bin"),
        "missing-projector",
        "non_lora_trainables.bin",
    ),
    "adapter_without_its_rank": (
        tiny.adapter,
        edit("adapter_config.json", r=4),
        "adapter-mismatch",
        "size mismatch",
    ),
    "other_base": (tiny.adapter, edit("config.json", hidden_size=256), "base-mismatch", "hidden_size is 128"),
    "deeper_base": (
        tiny.adapter,
        edit("config.json", num_hidden_layers=5),
        "base-mismatch",
        "num_hidden_layers is 4",
    ),
    "other_vocabulary": (
        tiny.adapter,
        edit("config.json", vocab_size=32000),
        "base-mismatch",
        "vocab_size is 2048",
    ),
    "smaller_vocabulary": (
        tiny.adapter,
        edit("config.json", vocab_size=2000),
        "base-mismatch",
        "vocab_size is 2048",
    ),
    "images_without_config": (tiny.adapter, drop("config.json"), "missing-config", "config.json"),
    "code_in_bin": (tiny.projector_only, unpicklable, "unsafe-pickle", "mm_projector.bin"),
    "code_in_tower": (tiny.self_trained, tower_with_code, "unsafe-pickle", "clip/pytorch_model.bin"),
    "projector_cut": (
        tiny.projector_only,
        cut("mm_projector.bin", 500),
        "unreadable-weights",
        "mm_projector.bin",
    ),
    "other_projector": (
        tiny.projector_only,
        edit("config.json", mm_projector_type="linear"),
        "projector-mismatch",
        "mm_projector.bin",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_fails_with_one_line_that_names_the_file(
    damage: str, golden: Path, tmp_path: Path
) -> None:
    build, how, code, fact = DAMAGE[damage]
    folder = broken(tmp_path / "model", golden, how, build)
    base = golden / tiny.LANGUAGE if build in (tiny.adapter, tiny.projector_only) else None
    with raises_code(code, CheckpointError) as caught:
        load_pretrained_model(folder, base, device="cpu", dtype="float32")
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "was-run").exists()


def test_a_wrong_path_fails_and_is_named(golden: Path, tmp_path: Path) -> None:
    cases: list[tuple[str | Path, str]] = [
        (tmp_path / "nowhere", "unknown-model"),
        (golden / tiny.LANGUAGE / "config.json", "not-a-folder"),
        ("no-such/model", "hub-unreachable"),
    ]
    for path, code in cases:
        with raises_code(code, CheckpointError) as caught:
            load_pretrained_model(path, device="cpu", dtype="float32")
        assert str(path) in str(caught.value)


def test_a_base_that_is_no_language_model_is_refused(golden: Path, tmp_path: Path) -> None:
    folder = tiny.adapter(tmp_path / "adapter", golden)
    (tmp_path / "empty").mkdir()
    for base, code in [
        (tmp_path / "empty", "missing-config"),
        (golden / tiny.TOWER, "unknown-model-type"),
        (golden / "images", "missing-config"),
    ]:
        with raises_code(code, CheckpointError) as caught:
            load_pretrained_model(folder, base, device="cpu", dtype="float32")
        assert str(base) in str(caught.value)


@pytest.mark.parametrize("build", [tiny.adapter, tiny.projector_only])
def test_an_adapter_or_projector_without_a_base_asks_for_one(
    build: Build, golden: Path, tmp_path: Path
) -> None:
    with raises_code("base-needed", CheckpointError) as caught:
        load_pretrained_model(build(tmp_path / "trained", golden), device="cpu", dtype="float32")
    assert "--model-base" in str(caught.value)


def test_every_wrappers_prefix_is_stripped() -> None:
    own = "model.mm_projector.0.weight"
    for prefix in (
        "base_model.model.model.",
        "base_model.model.",
        "module.base_model.model.model.",
        "model.",
        "",
    ):
        assert strip_wrappers(prefix + "mm_projector.0.weight") == own
    assert strip_wrappers("base_model.model.lm_head.weight") == "lm_head.weight"


def test_a_saved_config_is_readable_by_old_and_new(golden: Path, tmp_path: Path) -> None:
    config = LlavaConfig.from_pretrained(golden / tiny.ADAPTER)
    config.save_pretrained(tmp_path)
    written, old = tiny.fields(tmp_path / "config.json"), tiny.fields(golden / tiny.ADAPTER / "config.json")
    moved = {"_name_or_path", "rope_scaling", "transformers_version"}
    assert {name for name in old if old[name] != written.get(name)} <= moved
    assert "max_sequence_length" not in written  # a null there is a context of None to the original
    again = LlavaConfig.from_pretrained(tmp_path).to_diff_dict()
    assert {name: again[name] for name in written} == {name: config.to_diff_dict()[name] for name in written}
