"""The original's functions on whole checkpoints: weights as a difference to LLaMA's, and in float16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import CheckpointError
from llava.files import read_json, write_json

if TYPE_CHECKING:  # torch and the model are imported on use, so that --help is quick
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

# The tables that LLaVA's image tokens may have made longer than the base's.
_GROWN = ("model.embed_tokens.weight", "lm_head.weight")


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write `base + delta` to `target_model_path`, in float16.

    Args:
        base_model_path: A LLaMA model.
        target_model_path: The folder to write.
        delta_path: What `make_delta` wrote, or a published delta.

    Raises:
        CheckpointError: The two models do not fit each other.
    """
    from llava.tokenizer import load_tokenizer

    delta = _read_llava(delta_path)
    _add(delta, base_model_path, sign=1)
    delta.save_pretrained(target_model_path)
    load_tokenizer(Path(delta_path)).save_pretrained(target_model_path)


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Write `target - base` to `delta_path`, in float16.

    Args:
        base_model_path: A LLaMA model.
        target_model_path: A LLaVA model that was trained from it.
        delta_path: The folder to write.
        hub_repo_id: A repository on the hub to upload the folder to, too.

    Raises:
        CheckpointError: The two models do not fit each other.
    """
    from llava.tokenizer import load_tokenizer

    upload: dict[str, object] = {"push_to_hub": True, "repo_id": hub_repo_id} if hub_repo_id else {}
    auto_upgrade(target_model_path)
    target = _read_llava(target_model_path)
    _add(target, base_model_path, sign=-1)
    target.save_pretrained(delta_path, **upload)
    load_tokenizer(Path(target_model_path)).save_pretrained(delta_path, **upload)


def consolidate_ckpt(src_path: str, dst_path: str) -> None:
    """Rewrite a full model in float16 without its vision tower; see `llava.model.merge.consolidate`."""
    from llava.model.merge import consolidate

    consolidate(src_path, Path(dst_path))


def auto_upgrade(config: str) -> None:
    """Ask whether to write the model type `llava` into the config.json of a checkpoint of LLaVA v0.

    Such a checkpoint has "llava" in its path and the type `llama`. This package reads it either way.

    Raises:
        SystemExit: The answer is no; the file is unchanged.
    """
    path = Path(config) / "config.json"
    if "llava" not in config or not path.is_file():
        return
    fields = read_json(path)
    if fields.get("model_type") != "llama":
        return
    if input(f"{path}: has the model type of LLaVA v0; upgrade it? [Y/N] ").lower() not in ("y", "yes"):
        raise SystemExit(1)
    write_json(path, {**fields, "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]})


def _read_llava(folder: str) -> LlavaLlamaForCausalLM:
    import torch

    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    config = LlavaConfig.from_pretrained(folder)
    model: LlavaLlamaForCausalLM = LlavaLlamaForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float16
    )
    return model


def _add(model: LlavaLlamaForCausalLM, base_model_path: str, *, sign: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_model_path, dtype=torch.float16).state_dict()
    for name, weight in model.state_dict().items():
        if name not in base:
            if "mm_projector" not in name:
                raise CheckpointError(f"{base_model_path}: has no {name}", code="base-mismatch")
            continue
        rows, columns = base[name].shape[0], base[name].shape[1:]
        if weight.shape[1:] != columns or (weight.shape[0] != rows and name not in _GROWN):
            raise CheckpointError(
                f"{base_model_path}: {name} is {tuple(base[name].shape)}, wanted {tuple(weight.shape)}",
                code="base-mismatch",
            )
        with torch.no_grad():
            weight[:rows] += sign * base[name]
