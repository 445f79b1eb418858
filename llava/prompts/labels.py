"""Which ids of a sample are trained on: its answers, each to the end of its end mark, and nothing else.

The original measures each round of a conversation on its own and adds the lengths up, which goes wrong for
an empty answer, an end mark inside a text, and every vocabulary but LLaMA's; it then silences the whole
sample with a printed line. Here an answer's ids are those behind the ids of the text before it. Where the
original kept a sample, ids and labels are the same.

Source: LLaVA v1.2.2 train.py, preprocess_multimodal and preprocess_{plain,v1,llama_2,mpt} (which text, what
is supervised, what is truncated).
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, render
from llava.errors import DataError
from llava.prompts.encode import Tokenizer, encode_prompt
from llava.schema import Sample, Turn

NO_ANSWER = "no answer"
ANSWER_CUT_AWAY = "answer cut away"
IMAGE_NOT_IN_TEXT = "image not in text"
BOUNDARY_UNCLEAR = "answer boundary unclear"


@dataclass(frozen=True, slots=True)
class Supervised:
    """A sample as ids; labels are the ids of its answers and -100 elsewhere.

    `problem` says in a few fixed words why nothing can be learnt from the sample; all labels are -100 then
    and only then.
    """

    input_ids: list[int]
    labels: list[int]
    problem: str | None


def supervise(
    sample: Sample,
    template: Conversation,
    tokenizer: Tokenizer,
    *,
    max_length: int | None,
    mm_use_im_start_end: bool = False,
) -> Supervised:
    """The ids and labels of `sample`.

    Args:
        sample: What was said. A first turn that is not the human's is left out, as in the original (the
            SINGLE style keeps it, likewise).
        template: One of `conv_templates`.
        tokenizer: Any of transformers'.
        max_length: Ids kept of a text-only sample. One with an image is not cut here: its image takes more
            places than one, so only the collator knows where the end is.
        mm_use_im_start_end: Set the image off by `<im_start>` and `<im_end>`.

    Raises:
        DataError: The turns do not alternate, or the template cannot hold them; the message names the sample.
    """
    turns = _turns_in_order(sample, template, mm_use_im_start_end=mm_use_im_start_end)
    try:
        text, answers = render(template, turns)
    except DataError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error

    def encode(part: str) -> list[int]:
        return encode_prompt(part, tokenizer) if sample.image is not None else tokenizer(part).input_ids

    ids = encode(text)
    labels = [IGNORE_INDEX] * len(ids)
    problem = None if answers else NO_ANSWER
    for start, end in answers:
        before, said = encode(text[:start]), encode(text[:end])
        if ids[: len(said)] != said or said[: len(before)] != before:
            problem = BOUNDARY_UNCLEAR
            break
        labels[len(before) : len(said)] = ids[len(before) : len(said)]
    if sample.image is None and max_length is not None:
        ids, labels = ids[:max_length], labels[:max_length]
    elif sample.image is not None and IMAGE_TOKEN_INDEX not in ids:
        problem = IMAGE_NOT_IN_TEXT
    if problem is None and all(label == IGNORE_INDEX for label in labels):
        problem = ANSWER_CUT_AWAY
    if problem is not None:
        labels = [IGNORE_INDEX] * len(ids)
    return Supervised(ids, labels, problem)


def _turns_in_order(sample: Sample, template: Conversation, *, mm_use_im_start_end: bool) -> list[Turn]:
    turns = list(sample.turns)
    if sample.image is not None:
        texts = [
            place_image_token(turn.text, template.version, mm_use_im_start_end=mm_use_im_start_end)
            for turn in turns
        ]
        turns = [Turn(turn.speaker, text) for turn, text in zip(turns, texts, strict=True)]
    drops_opening = template.sep_style not in (SeparatorStyle.SINGLE, SeparatorStyle.PLAIN)
    if drops_opening and turns and turns[0].speaker != "human":
        return turns[1:]
    return turns


def place_image_token(text: str, version: str, *, mm_use_im_start_end: bool = False) -> str:
    """`text` with its image token, if it has any, once and in front; `version` is the template's.

    "a <image> b" becomes "<image>\\na  b".
    """
    if DEFAULT_IMAGE_TOKEN not in text:
        return text
    text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    text = f"{DEFAULT_IMAGE_TOKEN}\n{text}".strip()
    token = DEFAULT_IMAGE_TOKEN
    if "mmtag" in version:
        token = f"<Image>{token}</Image>"
    if mm_use_im_start_end:
        framed = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}"
        token = token.replace(DEFAULT_IMAGE_TOKEN, framed)
    return text.replace(DEFAULT_IMAGE_TOKEN, token)
