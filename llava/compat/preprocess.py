"""The original's functions from conversations to training tensors, on top of `llava.prompts.labels`.

A conversation is a list of {"from": "human" or "gpt", "value": text}. The template is
`llava.conversation.default_conversation`, which training programs set; so it is read at each call.

Ids are the original's. So are labels, except where the original silences a whole sample because its lengths
do not add up ("tokenization mismatch"): here its answers stay supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
from torch.nn.utils.rnn import pad_sequence

from llava import conversation
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import Conversation, SeparatorStyle
from llava.model.loading.weights import Tensors
from llava.prompts.labels import Supervised, place_image_token, supervise_turns, without_opening
from llava.schema import Speaker, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = list[dict[str, str]]
Rows = dict[str, list[torch.Tensor]]


class Tokenized(TypedDict):
    """Texts tokenized each on its own."""

    input_ids: list[torch.Tensor]
    labels: list[torch.Tensor]
    input_ids_lens: list[int]
    labels_lens: list[int]


class ImageFlags(Protocol):
    """Flags of the original's DataArguments that say how images stand in a conversation."""

    is_multimodal: bool
    mm_use_im_start_end: bool


def preprocess_multimodal(sources: Sequence[Source], data_args: ImageFlags) -> Sequence[Source]:
    """Move each turn's image token to its front, in place, and return `sources`.

    Args:
        sources: Conversations.
        data_args: Has `is_multimodal`, without which nothing is changed, and `mm_use_im_start_end`.
    """
    if not data_args.is_multimodal:
        return sources
    version = conversation.default_conversation.version
    for source in sources:
        for sentence in source:
            sentence["value"] = place_image_token(
                sentence["value"], version, mm_use_im_start_end=data_args.mm_use_im_start_end
            )
    return sources


def preprocess(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> Tensors | Rows:
    """Return the `input_ids` and `labels` of conversations in the style of `default_conversation`.

    Args:
        sources: Conversations, after `preprocess_multimodal` if they have images.
        tokenizer: Its `model_max_length` truncates conversations without images.
        has_image: Whether `<image>` stands for an image.

    Returns:
        Each an int64 tensor (B, L), or a list of B tensors (L,) for the styles PLAIN and SINGLE.

    Raises:
        DataError: A conversation's turns do not alternate, or the style cannot hold them.
        KeyError: A turn is from neither human nor gpt.
    """
    template = conversation.default_conversation
    if template.sep_style is SeparatorStyle.PLAIN:
        return preprocess_plain(sources, tokenizer)
    made = _supervise(sources, template, tokenizer, has_image=has_image)
    return (
        _lists(made) if template.sep_style is SeparatorStyle.SINGLE else _stacked(made, tokenizer, has_image)
    )


def preprocess_v1(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> Tensors:
    """Return `preprocess`'s tensors for the style TWO (Vicuna v1)."""
    return _preprocess_as(SeparatorStyle.TWO, sources, tokenizer, has_image)


def preprocess_llama_2(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> Tensors:
    """Return `preprocess`'s tensors for the style LLAMA_2."""
    return _preprocess_as(SeparatorStyle.LLAMA_2, sources, tokenizer, has_image)


def preprocess_mpt(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, has_image: bool = False
) -> Tensors:
    """Return `preprocess`'s tensors for the style MPT (ChatML)."""
    return _preprocess_as(SeparatorStyle.MPT, sources, tokenizer, has_image)


def preprocess_plain(sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Return lists of `input_ids` and `labels` of captions: the image token, then the supervised answer."""
    for source in sources:
        assert len(source) == 2
        assert DEFAULT_IMAGE_TOKEN in source[0]["value"]
        source[0]["value"] = DEFAULT_IMAGE_TOKEN
    return _lists(_supervise(sources, conversation.default_conversation, tokenizer, has_image=True))


def _tokenize_fn(strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tokenized:
    """Tokenize each string on its own, truncated; return ids, labels (the same ids) and their lengths."""
    ids = [
        tokenizer(
            text,
            return_tensors="pt",
            padding="longest",
            max_length=tokenizer.model_max_length,
            truncation=True,
        ).input_ids[0]
        for text in strings
    ]
    lengths = [int(row.ne(tokenizer.pad_token_id).sum()) for row in ids]
    return {"input_ids": ids, "labels": ids, "input_ids_lens": lengths, "labels_lens": lengths}


def _preprocess_as(
    style: SeparatorStyle, sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase, has_image: bool
) -> Tensors:
    template = conversation.default_conversation
    assert template.sep_style is style, f"default_conversation has style {template.sep_style.name}"
    return _stacked(_supervise(sources, template, tokenizer, has_image=has_image), tokenizer, has_image)


def _supervise(
    sources: Sequence[Source], template: Conversation, tokenizer: PreTrainedTokenizerBase, *, has_image: bool
) -> list[Supervised]:
    speakers: dict[str, Speaker] = {"human": "human", "gpt": "gpt"}
    made = []
    for source in sources:
        turns = [Turn(speakers[sentence["from"]], sentence["value"]) for sentence in source]
        made.append(
            supervise_turns(
                without_opening(turns, template),
                template,
                tokenizer,
                has_image=has_image,
                max_length=tokenizer.model_max_length,
            )
        )
    return made


def _lists(made: Sequence[Supervised]) -> Rows:
    return {
        "input_ids": [torch.tensor(one.input_ids, dtype=torch.long) for one in made],
        "labels": [torch.tensor(one.labels, dtype=torch.long) for one in made],
    }


def _stacked(made: Sequence[Supervised], tokenizer: PreTrainedTokenizerBase, has_image: bool) -> Tensors:
    """Return (B, L) tensors: conversations without images are padded, others must have one length."""
    rows = _lists(made)
    if has_image:
        return {name: torch.stack(tensors) for name, tensors in rows.items()}
    fills = {"input_ids": tokenizer.pad_token_id, "labels": IGNORE_INDEX}
    return {
        name: pad_sequence(tensors, batch_first=True, padding_value=fills[name])
        for name, tensors in rows.items()
    }
