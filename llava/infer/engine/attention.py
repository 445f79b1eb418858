"""Attend in a pass of the engine, by the attention implementation `slots` of transformers.

In a pass, all layers but attention read one row of positions without any padding. Attention sees the rows of
the caches, and to which of them each position of the pass belongs.

Shapes: T positions of the pass, R rows of a cache, Q the most positions of a row, C columns, H heads, K heads
of keys and values, E features of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava.infer.engine.kv_cache import RowCache
from llava.model.onednn.attention import attend, attend_by_onednn
from llava.model.onednn.product import can_use_onednn

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention

_SLOTS = "slots"


@dataclass(frozen=True, slots=True)
class PrefixPass:
    """A pass of whole prefixes of these lengths, for the rows from `first` on. It needs no mask."""

    cache: RowCache
    first: int
    lengths: Sequence[int]

    def attend(
        self,
        module: LlamaAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        **settings: Any,
    ) -> torch.Tensor:
        """Keep keys and values (1, K, T, E), attend within each prefix, and return (1, T, H, E)."""
        keys, values = self.cache.layer(module.layer_idx, key)
        split = (tensor.split(list(self.lengths), dim=2) for tensor in (query, key, value))
        attended = []
        for row, (q, k, v) in enumerate(zip(*split, strict=True), start=self.first):
            keys[row, :, : k.shape[2]], values[row, :, : v.shape[2]] = k[0], v[0]
            if can_use_onednn(q):
                kept_keys, kept_values = (each[row, None, :, : k.shape[2]] for each in (keys, values))
                result = attend_by_onednn(q, kept_keys, kept_values, scaling, is_causal=True)
                attended.append(result.transpose(1, 2))
            else:
                result, _ = sdpa_attention_forward(module, q, k, v, None, scaling=scaling, **settings)
                attended.append(result)
        return torch.cat(attended, dim=1)


class SeenRows:
    """What the positions of a pass see of a cache: each the first columns of one row."""

    def __init__(
        self,
        cache: RowCache,
        rows: slice,
        numbers: Sequence[int],
        columns: Sequence[int],
        device: torch.device,
    ) -> None:
        """Describe what is seen.

        Args:
            cache: The cache.
            rows: The rows that are seen.
            numbers: T numbers. The row of each position, counted from the first of `rows`.
            columns: T numbers, > 0. How many columns each position sees.
            device: Where the first layer computes.
        """
        self._cache, self._rows = cache, rows
        before: Counter[int] = Counter()
        places = []  # how many positions of the same row precede each
        for number in numbers:
            places.append(before[number])
            before[number] += 1
        self._at = torch.tensor([numbers, places], device=device)
        self._last = torch.tensor(columns, device=device) - 1
        self._padded, self._width = (rows.stop - rows.start, max(before.values())), max(columns)
        self._hidden: torch.Tensor | None = None  # (R, 1, Q, C)
        if min(columns) < self._width:
            seen = torch.ones(self._padded, dtype=torch.long, device=device)
            seen[tuple(self._at)] = self._last + 1
            self._hidden = torch.arange(self._width, device=device) >= seen[:, None, :, None]

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put the keys and values of the positions, (1, K, T, E), into the last columns that they see."""
        (numbers, _), last = self._at.to(key.device), self._last.to(key.device)
        for states, new in zip(self._cache.layer(layer, key), (key, value), strict=True):
            states[self._rows][numbers, :, last] = new[0].transpose(0, 1)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from queries (1, H, T, E) to the rows of a layer with keys like `key`, (1, K, T, E).

        Returns:
            What each position attends to, (T, H, E), and the logarithm of the sum of the exponentials of its
            scores, (T, H, 1). Both are float32.
        """
        numbers, places = self._at.to(query.device)
        rows, longest = self._padded
        padded = query.new_zeros(rows, query.shape[1], longest, query.shape[3])
        padded[numbers, :, places] = query[0].transpose(0, 1)
        keys, values = (states[self._rows, :, : self._width] for states in self._cache.layer(layer, key))
        hidden = None if self._hidden is None else self._hidden.to(query.device)
        attended, logs = attend(padded, keys, values, hidden, scaling)
        return attended[numbers, :, places], logs[numbers, :, places]


@dataclass(frozen=True, slots=True)
class RestPass:
    """A pass of positions that follow the prefixes. A position sees the prefix and its own prompt's rest.

    Prefix and rest are attended to apart, so no position is scored against what other prompts own. The two
    results are then weighted by their shares in the sum of the exponentials.
    """

    prefixes: SeenRows
    rests: SeenRows

    def attend(
        self,
        module: LlamaAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        **_: object,
    ) -> torch.Tensor:
        """Keep keys and values (1, K, T, E), attend to what is seen, and return (1, T, H, E)."""
        self.rests.append(module.layer_idx, key, value)
        shared, of_shared = self.prefixes.attend(module.layer_idx, query, key, scaling)
        own, of_own = self.rests.attend(module.layer_idx, query, key, scaling)
        return torch.lerp(own, shared, torch.sigmoid(of_shared - of_own)).to(query.dtype)[None]


@contextmanager
def attending_in_slots(config: PretrainedConfig) -> Iterator[None]:
    """Let a model of this config attend as the argument `slot_pass` of its forward says."""
    usual = config._attn_implementation
    config._attn_implementation = _SLOTS
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: LlamaAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slot_pass: PrefixPass | RestPass,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    return slot_pass.attend(module, query, key, value, **settings), None


AttentionInterface.register(_SLOTS, _attend)
