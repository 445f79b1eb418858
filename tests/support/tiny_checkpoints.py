"""Write checkpoint folders in every layout of LLaVA, from the golden weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
LANGUAGE = "weights/tiny-vicuna-v1.5"
TOWER = "weights/tiny-clip-vit-patch14-56"
PROJECTOR = "weights/tiny-pretrain"
ADAPTER = "viii_lora"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def fields(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_config(folder: Path, golden: Path, source: str, **changes: Any) -> None:
    """Write `source`'s config.json with changes (None removes a field) and an absolute path of the tower."""
    folder.mkdir(parents=True, exist_ok=True)
    config = fields(golden / source / "config.json") | {"mm_vision_tower": str(golden / TOWER)} | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")


def write_tokenizer(folder: Path, golden: Path) -> None:
    for name in TOKENIZER_FILES:
        shutil.copy(golden / LANGUAGE / name, folder / name)


def multimodal(golden: Path, *, tower_prefix: str | None = None) -> Tensors:
    """Return the golden model's weights, the tower's under `tower_prefix` or left out."""
    tensors = load_file(golden / LANGUAGE / "model.safetensors")
    tensors |= torch.load(golden / PROJECTOR / "mm_projector.bin", weights_only=True)
    if tower_prefix is not None:
        tower = load_file(golden / TOWER / "model.safetensors")
        tensors |= {tower_prefix + name.removeprefix("vision_model."): tower[name] for name in tower}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_weights(folder: Path, tensors: Tensors, *, suffix: str, shards: int = 1) -> None:
    """Write weights to one file or to shards with an index, `.bin` or `.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = sorted(tensors)
    index: dict[str, str] = {}
    for shard in range(shards):
        own = {name: tensors[name] for name in names[shard::shards]}
        file = f"{stem}{suffix}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}{suffix}"
        index |= dict.fromkeys(own, file)
        if suffix == ".safetensors":
            save_file(own, folder / file, metadata={"format": "pt"})
        else:
            torch.save(own, folder / file)
    if shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / f"{stem}{suffix}.index.json").write_text(text, encoding="utf-8")


def released(folder: Path, golden: Path) -> Path:
    """Write the layout of liuhaotian/llava-v1.5-7b: .bin shards, no tower, type `llava`, null fields."""
    tensors = multimodal(golden)
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    write_weights(folder, tensors, suffix=".bin", shards=3)
    config = {"model_type": "llava", "mm_patch_merge_type": None, "mm_projector_lr": None}
    config |= {"tokenizer_model_max_length": None, "tokenizer_padding_side": None}
    write_config(folder, golden, PROJECTOR, **config)
    nulls = {
        "unfreeze_mm_vision_tower": False,
        "mm_resampler_type": None,
        "freeze_mm_vision_resampler": False,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(fields(path) | nulls), encoding="utf-8")
    sampling = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    write_tokenizer(folder, golden)
    return folder


def self_trained(
    folder: Path,
    golden: Path,
    *,
    prefix: str = "model.vision_tower.vision_tower.vision_model.",
    shards: int = 1,
) -> Path:
    """Write a full fine-tuning's output: all weights in .safetensors, also the frozen tower's."""
    write_weights(folder, multimodal(golden, tower_prefix=prefix), suffix=".safetensors", shards=shards)
    write_config(folder, golden, PROJECTOR)
    write_tokenizer(folder, golden)
    return folder


def projector_only(folder: Path, golden: Path) -> Path:
    """Write the output of stage 1 (or its checkpoint-N): config.json and mm_projector.bin."""
    write_config(folder, golden, PROJECTOR, architectures=["LlamaForCausalLM"])
    shutil.copy(golden / PROJECTOR / "mm_projector.bin", folder)
    return folder


def adapter(
    folder: Path,
    golden: Path,
    *,
    prefix: str = "base_model.model.model.",
    suffix: str = ".safetensors",
    dtype: torch.dtype = torch.float32,
    model_type: str = "llava_llama",
    named_base: str | None = None,
) -> Path:
    """Write a LoRA run's output. `.bin` comes with the short adapter_config.json of PEFT 0.4."""
    write_config(folder, golden, ADAPTER, model_type=model_type)
    weights = load_file(golden / ADAPTER / "adapter_model.safetensors")
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    settings = fields(golden / ADAPTER / "adapter_config.json") | {"base_model_name_or_path": named_base}
    if suffix == ".bin":
        torch.save(weights, folder / "adapter_model.bin")
        known = "base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights layers_pattern "
        known += (
            "layers_to_transform lora_alpha lora_dropout modules_to_save peft_type r target_modules task_type"
        )
        settings = {name: settings[name] for name in known.split()}
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    trained = torch.load(golden / ADAPTER / "non_lora_trainables.bin", weights_only=True)
    renamed = {
        prefix + name.split("model.model.", 1)[1]: tensor.to(dtype) for name, tensor in trained.items()
    }
    torch.save(renamed, folder / "non_lora_trainables.bin")
    return folder
