"""Stop generation at keywords, as the original does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops once every row of the batch ends with a keyword.

    A row does if it ends with the keyword's ids, or if its last tokens decode to a text with the keyword.
    Only new tokens count, whether or not `output_ids` start with the prompt (generation from embeddings
    returns new tokens only). Source: LLaVA v1.2.2 mm_utils.py, which always cuts the prompt's length off.
    """

    def __init__(
        self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor
    ) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt_ids = input_ids
        self.keyword_ids = [self._encode(keyword) for keyword in keywords]
        self.longest = max((len(ids) for ids in self.keyword_ids), default=0)

    def __call__(self, output_ids: torch.Tensor, scores: torch.Tensor | None = None, **_: object) -> bool:
        start = self.prompt_ids.shape[1]
        starts_with_prompt = output_ids.shape[1] >= start and torch.equal(
            output_ids[:, :start].cpu(), self.prompt_ids.cpu()
        )
        new = output_ids[:, start:] if starts_with_prompt else output_ids
        return all(self._has_ended(row.tolist()) for row in new)

    def call_for_batch(self, output_ids: torch.Tensor, scores: torch.Tensor | None = None) -> bool:
        """Return whether the only row of `output_ids`, (1, L), has ended."""
        return self(output_ids, scores)

    def _has_ended(self, new: list[int]) -> bool:
        if any(ids and new[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        tail = new[-self.longest :] if self.longest else []
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)

    def _encode(self, keyword: str) -> list[int]:
        ids = list(self.tokenizer(keyword).input_ids)
        return ids[1:] if len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id else ids
