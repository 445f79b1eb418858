"""Measure how much memory a model takes.

One decoder layer runs on a few positions, and the tensors it saves for the backward pass are counted. The
count is right for any adapter, precision, dropout or kernel. The last norm and the projector are measured in
the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.model.sharded import gather_parameters

# Positions of the shorter of the two measured passes; the longer one has twice as many.
_PROBE = 64


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory use of a model, independent of the batch and of the number of ranks; sizes are in bytes.

    Attributes:
        frozen: Weights that are not trained.
        trained: Weights that are trained, in their stored precision.
        trained_count: Number of trained elements.
        largest_trained: The largest of the trained weights.
        weight_size: One element of a decoder weight.
        layers: Number of decoder layers.
        layer_fixed: What a layer saves for any number of positions: weights cast by autocast.
        layer_position: What a layer saves per position.
        layer_input: What a recomputed layer saves per position: its input.
        outside: The most that projector, embedding and last norm save per position.
        logit: Per position with logits: the logits, their float32 copy, and the gradients of both.
    """

    frozen: float
    trained: float
    trained_count: int
    largest_trained: float
    weight_size: int
    layers: int
    layer_fixed: float
    layer_position: float
    layer_input: float
    outside: float
    logit: float


def measure(model: PreTrainedModel, *, device: torch.device, autocast: torch.dtype | None) -> Footprint:
    """Measure a model's footprint by running a decoder layer and the projector on a few positions.

    The random state and the model are left unchanged. Under ZeRO-3 every rank must call this, before
    DeepSpeed wraps the model.

    Args:
        model: The model as it will be trained, with or without PEFT's wrapper, on any device.
        device: Where it will be trained: a CPU saves other tensors than a GPU.
        autocast: Precision of autocast; None without it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, width = base.model, base.config.hidden_size
    embedding = decoder.embed_tokens.weight
    rows = torch.zeros(1, 2 * _PROBE, width, dtype=embedding.dtype, device=device)
    position_ids = torch.arange(2 * _PROBE, device=device)[None]
    rotary = decoder.rotary_emb
    if rotary.inv_freq.is_meta:
        rotary = copy.deepcopy(rotary).to_empty(device=device)
    angles = rotary(rows, position_ids=position_ids)

    def run_layer(layer: nn.Module, hidden: torch.Tensor) -> object:
        length = hidden.shape[1]
        cos, sin = (angle[:, :length] for angle in angles)
        return layer.forward(hidden, position_embeddings=(cos, sin), position_ids=position_ids[:, :length])

    rows.requires_grad_()
    layer_fixed, layer_position = _saved(decoder.layers[0], rows, autocast, run_layer, angles)
    layer_input = embedding.element_size() * width
    outside = layer_input + _saved(decoder.norm, rows, autocast)[1]
    projector = getattr(decoder, "mm_projector", None)
    if projector is not None and any(True for _ in projector.parameters()):
        weight = next(projector.parameters())
        features = torch.zeros(1, 2 * _PROBE, base.config.mm_hidden_size, dtype=weight.dtype, device=device)
        outside += _saved(projector, features, autocast)[1]
    compute = torch.empty((), dtype=autocast or embedding.dtype).element_size()
    frozen, trained = (
        [parameter for parameter in model.parameters() if parameter.requires_grad is trains]
        for trains in (False, True)
    )
    return Footprint(
        frozen=sum(map(stored_bytes, frozen)),
        trained=sum(map(stored_bytes, trained)),
        trained_count=sum(map(numel, trained)),
        largest_trained=max(map(stored_bytes, trained), default=0),
        weight_size=embedding.element_size(),
        layers=len(decoder.layers),
        layer_fixed=layer_fixed,
        layer_position=layer_position,
        layer_input=layer_input,
        outside=outside,
        logit=base.config.vocab_size * (compute + 3 * 4),
    )


def _saved(
    module: nn.Module,
    rows: torch.Tensor,
    autocast: torch.dtype | None,
    run: Callable[[nn.Module, torch.Tensor], object] = nn.Module.__call__,
    shared: Sequence[torch.Tensor] = (),
) -> tuple[float, float]:
    """Return the bytes that `module` saves for the backward pass: a fixed amount, and per position.

    Args:
        module: The module to run. Its weights are not counted.
        rows: (1, L, D) inputs; the module runs on half of the positions, then on all, on their device.
        autocast: Precision of autocast; None without it.
        run: Calls the module with its inputs.
        shared: Tensors that are not counted, because other modules save them too.
    """
    device, was_training = rows.device, module.training
    weight = next(module.parameters())
    if weight.device.type != device.type and not hasattr(weight, "ds_id"):  # ZeRO-3 gathers it there
        module = copy.deepcopy(module)
        module = module.to_empty(device=device) if weight.is_meta else module.to(device)
    module.train()
    try:
        with (
            gather_parameters(module.parameters()),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.enable_grad(),
        ):
            known = [*module.parameters(), *module.buffers(), *shared]
            counts = rows.shape[1] // 2, rows.shape[1]
            few, many = (
                _saved_once(partial(run, module), rows[:, :count], known, autocast) for count in counts
            )
    finally:
        module.train(was_training)
    per_position = (many - few) / (counts[1] - counts[0])
    return few - counts[0] * per_position, per_position


def _saved_once(
    run: Callable[[torch.Tensor], object],
    rows: torch.Tensor,
    known: Sequence[torch.Tensor],
    autocast: torch.dtype | None,
) -> float:
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> None:
        # The graph must not get the tensor: one that saves its own output would never be freed.
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage

    with (
        torch.autocast(rows.device.type, autocast, enabled=autocast is not None),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing),
    ):
        run(rows.clone())
    for tensor in known:
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in saved.values())


def numel(parameter: nn.Parameter) -> int:
    """Return the number of elements of a parameter, also where ZeRO-3 has replaced it by an empty tensor."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def stored_bytes(parameter: nn.Parameter) -> int:
    """Return the bytes of a parameter over all ranks, with the constants of a 4-bit parameter."""
    size = numel(parameter) * parameter.element_size()
    quantisation = getattr(parameter, "quant_state", None)
    return size if quantisation is None else size + quantisation.absmax.nbytes
