"""The original's functions on a training model: what is saved, which layers get LoRA, new tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from llava.model.loading.weights import Tensors
from llava.model.lora import lora_targets
from llava.model.sharded import gather_copy
from llava.model.vocabulary import grow_embeddings

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def rank0_print(*args: object) -> None:
    """Print in the first process of each machine only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(*args)  # noqa: T201  # its name says so


def maybe_zero_3(param: nn.Parameter, ignore_status: bool = False, name: str | None = None) -> torch.Tensor:
    """Copy one parameter to the CPU. Under ZeRO-3 every rank must call this.

    Args:
        param: The parameter.
        ignore_status: Has no effect; the original logs less.
        name: Has no effect; the original logs it.
    """
    return gather_copy(param)


def get_mm_adapter_state_maybe_zero_3(named_params: NamedParameters, keys_to_match: Iterable[str]) -> Tensors:
    """Copy the parameters whose name contains one of the keys."""
    keys = tuple(keys_to_match)
    return {name: gather_copy(each) for name, each in named_params if any(key in name for key in keys)}


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> Tensors:
    """Copy a LoRA adapter's parameters under the model's own names, which PEFT's `save_pretrained` takes.

    Args:
        named_params: A PEFT model's.
        bias: The adapter's: "none", "all" or "lora_only" (the biases of layers with an adapter).

    Raises:
        NotImplementedError: `bias` is something else.
    """
    if bias not in ("none", "all", "lora_only"):
        raise NotImplementedError(f"bias {bias!r}: wanted none, all or lora_only")
    named = list(named_params)
    layers = {name.split("lora_", 1)[0] for name, _ in named if "lora_" in name}

    def is_saved(name: str) -> bool:
        if "lora_" in name:
            return True
        layer = name.removesuffix("base_layer.bias").removesuffix("bias")
        return "bias" in name and (bias == "all" or (bias == "lora_only" and layer in layers))

    return {name: gather_copy(each) for name, each in named if is_saved(name)}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> Tensors:
    """Return CPU copies of the parameters without "lora_" in their name, by name.

    Every rank must call this under ZeRO-3 and FSDP.

    Args:
        named_params: Names and parameters.
        require_grad_only: Leave out frozen parameters.
    """
    return {
        name: gather_copy(each)
        for name, each in named_params
        if "lora_" not in name and (each.requires_grad or not require_grad_only)
    }


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that get an adapter."""
    return lora_targets(model)


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: Mapping[str, str | AddedToken],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> None:
    """Add special tokens, and rows for them to the embedding tables; new rows are the mean of the old ones.

    A table that already has more rows keeps them; the original cuts it.
    """
    tokenizer.add_special_tokens(dict(special_tokens_dict))
    grow_embeddings(model, len(tokenizer))
