"""What a model takes in memory, found out by asking it.

One decoder layer runs on a few positions, and what it saves for the backward pass is counted, whatever
adapter, precision, dropout or kernel it has; likewise the last norm and the projector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from llava.model.zero3 import gather_parameters

# Positions of the shorter of the two passes that a part is asked with.
_PROBE = 64


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model, before it is known how much goes through it and who shares it.

    Attributes:
        frozen: Weights that are not trained.
        trained: Weights that are, as they are stored.
        trained_count: How many numbers these are.
        weight_size: Of one number of a decoder's weight.
        layers: Decoder layers.
        layer_fixed: What a layer saves whatever the number of positions: weights cast for autocast.
        layer_position: What a layer saves for each position.
        layer_input: What is left of that where a layer is recomputed: its input.
        outside: What projector, embedding and last norm save for each position, at most.
        logit: Of a position whose logits are made: they, their float32 form, and the gradients of both.
    """

    frozen: float
    trained: float
    trained_count: int
    weight_size: int
    layers: int
    layer_fixed: float
    layer_position: float
    layer_input: float
    outside: float
    logit: float


def measure(model: Any, *, device: torch.device, autocast: torch.dtype | None) -> Footprint:
    """A model's footprint, by running a decoder layer and the projector on a few positions.

    Draws no random number and leaves the model as it was. Under ZeRO-3 every process must call this, before
    DeepSpeed has the model.

    Args:
        model: As it will be trained, in PEFT's wrapper or not, wherever it is now.
        device: Where it will be trained: a CPU saves other things than a GPU.
        autocast: In what products are computed, if not in what the weights are in.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, width = base.model, base.config.hidden_size
    embedding = decoder.embed_tokens.weight
    rows = torch.zeros(1, 2 * _PROBE, width, dtype=embedding.dtype, device=device)
    places = torch.arange(2 * _PROBE, device=device)[None]
    angles = decoder.rotary_emb(rows, position_ids=places)

    def through_layer(layer: Any, hidden: torch.Tensor) -> Any:
        here = tuple(each[:, : hidden.shape[1]] for each in angles)
        return layer.forward(hidden, position_embeddings=here, position_ids=places[:, : hidden.shape[1]])

    rows.requires_grad_()
    layer_fixed, layer_position = _saved(decoder.layers[0], rows, autocast, through_layer, angles)
    layer_input = embedding.element_size() * width
    outside = layer_input + _saved(decoder.norm, rows, autocast)[1]
    projector = getattr(decoder, "mm_projector", None)
    if projector is not None and any(True for _ in projector.parameters()):
        weight = next(projector.parameters())
        features = torch.zeros(1, 2 * _PROBE, base.config.mm_hidden_size, dtype=weight.dtype, device=device)
        outside += _saved(projector, features, autocast)[1]
    compute = torch.empty((), dtype=autocast or embedding.dtype).element_size()
    frozen, trained = (
        [each for each in model.parameters() if each.requires_grad is kind] for kind in (False, True)
    )
    return Footprint(
        frozen=sum(map(stored_bytes, frozen)),
        trained=sum(map(stored_bytes, trained)),
        trained_count=sum(map(numel, trained)),
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
    run: Callable[[Any, torch.Tensor], Any] = nn.Module.__call__,
    shared: Sequence[torch.Tensor] = (),
) -> tuple[float, float]:
    """Bytes that `module` saves for the backward pass: whatever the number of positions, and for each.

    Args:
        module: Whose weights do not count.
        rows: (1, L, D), of which all positions and half of them go through it, where they are.
        autocast: As of `measure`.
        run: How it is called.
        shared: Tensors that do not count, as they are others' too.
    """
    device, was_training = rows.device, module.training
    weight = next(module.parameters())
    if weight.device.type != device.type and not hasattr(weight, "ds_id"):  # ZeRO-3 makes it whole there
        module = copy.deepcopy(module).to(device)
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
    each = (many - few) / (counts[1] - counts[0])
    return few - counts[0] * each, each


def _saved_once(
    run: Callable[[torch.Tensor], Any],
    rows: torch.Tensor,
    known: Sequence[torch.Tensor],
    autocast: torch.dtype | None,
) -> float:
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast(rows.device.type, autocast, enabled=autocast is not None),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        output = run(rows.clone())  # alive to the end, so that no address is used twice
    for each in known:
        sizes.pop(each.untyped_storage().data_ptr(), None)
    del output
    return sum(sizes.values())


def numel(parameter: nn.Parameter) -> int:
    """How many numbers a parameter is of; ZeRO-3 leaves an empty tensor and the true size beside it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def stored_bytes(parameter: nn.Parameter) -> int:
    """Bytes a parameter takes, all processes' parts together; with bitsandbytes' constants in 4 bits."""
    size = numel(parameter) * parameter.element_size()
    quantisation = getattr(parameter, "quant_state", None)
    return size if quantisation is None else size + quantisation.absmax.nbytes
