"""Encode a prompt with `<image>` in it as token ids, with -200 for the image.

Source: LLaVA v1.2.2 mm_utils.py, tokenizer_image_token (the rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX


class Encoded(Protocol):
    """What a tokenizer returns for one text."""

    @property
    def input_ids(self) -> list[int]:
        """The ids, BOS first if the tokenizer adds one."""


class Tokenizer(Protocol):
    """What prompts and labels need of a tokenizer; any tokenizer of transformers has it."""

    @property
    def bos_token_id(self) -> int | None:
        """The id that opens a text, None if there is none."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends an answer, None if there is none."""

    @property
    def eos_token(self) -> str | None:
        """How that id is written in a text."""

    def __call__(self, text: str, /) -> Encoded:
        """Return the ids of one text."""

    def decode(self, token_ids: list[int], /) -> str:
        """Return the text of ids."""


def encode_prompt(prompt: str, tokenizer: Tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX) -> list[int]:
    """Return the ids of `prompt`: pieces between images are tokenized separately, with one BOS in front."""
    stretches: Sequence[list[int]] = [tokenizer(text).input_ids for text in prompt.split(DEFAULT_IMAGE_TOKEN)]
    opens = bool(stretches[0]) and stretches[0][0] == tokenizer.bos_token_id
    ids = stretches[0][:opens]
    for index, stretch in enumerate(stretches):
        if index:
            ids.append(image_token_index)
        ids.extend(stretch[opens:])
    return ids


def tokenizer_image_token(
    prompt: str,
    tokenizer: Tokenizer,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> Any:
    """Return `encode_prompt`'s ids as a list, or for "pt" as a tensor (L,) of int64. The original's name.

    Raises:
        ValueError: `return_tensors` is neither None nor "pt".
    """
    ids = encode_prompt(prompt, tokenizer, image_token_index)
    if return_tensors is None:
        return ids
    if return_tensors == "pt":
        import torch

        return torch.tensor(ids, dtype=torch.long)
    raise ValueError(f"Unsupported tensor type: {return_tensors}")
