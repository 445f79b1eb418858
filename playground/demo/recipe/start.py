"""First values that let a small LLaMA find things in its own text within a hundred steps.

To turn "red" into "B", a model must find the option "B. red" and read what stands before "red". Two heads
must meet for that, and from HF's first values they had not after 150 steps. So:

- every embedding starts with a constant in coordinate 0, which heads can use to attend by position alone;
- in layer 0, one head starts out looking one token back and one two tokens back;
- in the last layers, queries start equal to keys, so that a token attends to its like
  (Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", 2023);
- the output matrix starts as the embedding, so that the answer's word and the option's word are near.

All of it is trained further like everything else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

_CONSTANT = 0.2
_EMBEDDING_STD = 0.05
_LOOK_BACK = (1, 2)
_FREQUENCIES = 4
_SHARPNESS = 6.0
_MATCH_STD = 0.08
_MIX_STD = 0.1
_FAST = 10


@torch.no_grad()
def prime(model: LlamaForCausalLM, projector: nn.Sequential, *, match_from: int) -> None:
    """Set first values in place; layers from `match_from` on start by attending to like tokens."""
    embedding = model.model.embed_tokens.weight
    nn.init.normal_(embedding, std=_EMBEDDING_STD)
    model.lm_head.weight.copy_(embedding)
    model.lm_head.weight[:, 0] = 0
    embedding[:, 0] = _CONSTANT
    projector[-1].bias[0] = _CONSTANT
    size = model.config.hidden_size // model.config.num_attention_heads
    width = model.config.hidden_size
    constant = _CONSTANT / (_EMBEDDING_STD**2 + _CONSTANT**2 / width) ** 0.5  # after the first norm
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        if index == 0 or index >= match_from:
            nn.init.normal_(attention.v_proj.weight, std=_MIX_STD)
            nn.init.normal_(attention.o_proj.weight, std=_MIX_STD)
        if index == 0:
            for head, distance in enumerate(_LOOK_BACK):
                query, key = _looking_back(size, distance, constant)
                rows = slice(head * size, (head + 1) * size)
                attention.q_proj.weight[rows] = 0
                attention.k_proj.weight[rows] = 0
                attention.q_proj.weight[rows, 0] = query
                attention.k_proj.weight[rows, 0] = key
        if index >= match_from:
            nn.init.normal_(attention.q_proj.weight, std=_MATCH_STD)
            # Fast rotations would tell equal tokens at different places apart.
            fast = (torch.arange(size // 2) < _FAST).repeat(2 * model.config.num_attention_heads)
            attention.q_proj.weight[fast] *= 0.2
            attention.q_proj.weight[:, 0] = 0
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def _looking_back(size: int, distance: int, constant: float) -> tuple[Tensor, Tensor]:
    """Query and key of one head, (size,) each, whose rotary product is largest `distance` tokens back."""
    half = size // 2
    angles = distance * 10000.0 ** (-torch.arange(_FREQUENCIES) / half)
    scale = (_SHARPNESS * size**0.5) ** 0.5 / constant
    query, key = torch.zeros(size), torch.zeros(size)
    query[:_FREQUENCIES] = scale
    key[:_FREQUENCIES] = scale * angles.cos()
    key[half : half + _FREQUENCIES] = scale * angles.sin()
    return query, key
