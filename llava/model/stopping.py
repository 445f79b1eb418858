"""A stopping rule of the original's, kept for code that imports it; nothing here uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops once every row of the batch ends in a keyword's ids or says a keyword in its last tokens.

    Only new tokens count, whether `output_ids` open with the prompt or, as when generating from embeddings,
    do not. Source: LLaVA v1.2.2 mm_utils.py, which took the prompt's length off in both cases.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt_ids = input_ids
        self.keyword_ids = [self._ids(keyword) for keyword in keywords]
        self.longest = max((len(ids) for ids in self.keyword_ids), default=0)

    def __call__(self, output_ids: torch.Tensor, scores: torch.Tensor | None = None, **_: Any) -> bool:
        start = self.prompt_ids.shape[1]
        opens_with_prompt = output_ids.shape[1] >= start and torch.equal(
            output_ids[:, :start].cpu(), self.prompt_ids.cpu()
        )
        new = output_ids[:, start:] if opens_with_prompt else output_ids
        return all(self._is_over(row.tolist()) for row in new)

    def _is_over(self, new: list[int]) -> bool:
        if any(ids and new[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        tail = new[-self.longest :] if self.longest else []
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)

    def _ids(self, keyword: str) -> list[int]:
        ids = list(self.tokenizer(keyword).input_ids)
        return ids[1:] if len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id else ids
