"""Choose which token ids of a sample are supervised: its answers with their end tokens, and nothing else.

The original tokenizes each round of a conversation separately and adds up the lengths. This fails for an
empty answer, for an end token inside a text, and for every vocabulary except LLaMA's: the original then
prints a warning and masks the whole sample, or masks the wrong positions. Here, an answer's ids are those
that follow the ids of the text before it. The ids always equal the original's. The labels equal the
original's wherever it kept the sample and no text contains a separator of the template ("</s>",
"ASSISTANT:").

Source: LLaVA v1.2.2 train.py, preprocess_multimodal and preprocess_{plain,v1,llama_2,mpt} (which text, what
is supervised, what is truncated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llava import conversation
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, Span, render
from llava.errors import DataError
from llava.prompts.encode import Tokenizer, encode_prompt
from llava.schema import Sample, Turn

NO_ANSWER = "no answer"
ANSWER_CUT_AWAY = "answer cut away"
IMAGE_NOT_IN_TEXT = "image not in text"
BOUNDARY_UNCLEAR = "answer boundary unclear"

Encode = Callable[[str], list[int]]

# Template styles that cannot represent every sample that llava/samples.py accepts.
CHOOSY = (SeparatorStyle.PLAIN, SeparatorStyle.LLAMA_2)

# How many ids at the end of a prefix may differ from the full text's: a token that reaches across the
# boundary.
_REACH = 8


@dataclass(frozen=True, slots=True)
class Supervised:
    """A tokenized sample: labels are the ids of its answers, and -100 elsewhere.

    `problem` says why nothing is supervised, as one of the constants above. All labels are -100 if and only
    if it is set.
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
    """Return the ids and labels of `sample`.

    Args:
        sample: Its first turn is left out if it is not the human's, as in the original; the SINGLE and PLAIN
            styles keep it.
        template: One of `conv_templates`.
        tokenizer: Any transformers tokenizer.
        max_length: The number of ids that a text-only sample keeps. A sample with an image is truncated
            later, because its image takes more than one position.
        mm_use_im_start_end: Enclose the image in `<im_start>` and `<im_end>`.

    Raises:
        DataError: The turns do not alternate, or the template cannot hold them; the message names the sample.
    """
    turns = _turns_in_order(sample, template, mm_use_im_start_end=mm_use_im_start_end)
    with _naming(sample):
        return supervise_turns(
            turns, template, tokenizer, has_image=sample.image is not None, max_length=max_length
        )


def supervise_turns(
    turns: Sequence[Turn],
    template: Conversation,
    tokenizer: Tokenizer,
    *,
    has_image: bool,
    max_length: int | None,
) -> Supervised:
    """Return the ids and labels of turns whose image token, if there is one, is where the model expects it.

    Args:
        turns: The human's and the model's in turn.
        template: One of `conv_templates`.
        tokenizer: Any of transformers'.
        has_image: Whether `<image>` stands for an image; otherwise it is plain text.
        max_length: As in `supervise`.

    Raises:
        DataError: The turns do not alternate, or the template cannot hold them.
    """
    text, answers = render(template, turns)

    def encode(part: str) -> list[int]:
        return encode_prompt(part, tokenizer) if has_image else tokenizer(part).input_ids

    ids = encode(text)
    labels = [IGNORE_INDEX] * len(ids)
    problem = None if answers else NO_ANSWER
    spans = _spans_by_round(text, answers, ids, encode, tokenizer)
    if spans is None:
        spans = _spans_by_prefix(text, answers, ids, encode, tokenizer)
    if spans is None:
        problem = BOUNDARY_UNCLEAR
    for first, stop in spans or ():
        labels[first:stop] = ids[first:stop]
    if not has_image and max_length is not None:
        ids, labels = ids[:max_length], labels[:max_length]
    elif has_image and IMAGE_TOKEN_INDEX not in ids:
        problem = IMAGE_NOT_IN_TEXT
    if problem is None and all(label == IGNORE_INDEX for label in labels):
        problem = ANSWER_CUT_AWAY
    if problem is not None:
        labels = [IGNORE_INDEX] * len(ids)
    return Supervised(ids, labels, problem)


def require_supervisable(sample: Sample, template: Conversation) -> None:
    """Check that the template can represent the sample's turns. This needs no tokenizer.

    Raises:
        DataError: It cannot; the message names the sample.
    """
    if template.sep_style in CHOOSY:
        with _naming(sample):
            # The image token may stay where it is: its place does not matter for this check.
            conversation.require_renderable(template, without_opening(sample.turns, template))


def place_image_token(text: str, version: str, *, mm_use_im_start_end: bool = False) -> str:
    r"""Move the image token, if there is one, to the front of `text`, once; `version` is the template's.

    "a <image> b" becomes "<image>\na  b".
    """
    if DEFAULT_IMAGE_TOKEN not in text:
        return text
    text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    text = f"{DEFAULT_IMAGE_TOKEN}\n{text}".strip()
    token = DEFAULT_IMAGE_TOKEN
    if mm_use_im_start_end:
        token = f"{DEFAULT_IM_START_TOKEN}{token}{DEFAULT_IM_END_TOKEN}"
    if "mmtag" in version:
        token = f"<Image>{token}</Image>"
    return text.replace(DEFAULT_IMAGE_TOKEN, token)


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"sample {sample.id!r}: {error}", code=error.code) from error


def _turns_in_order(sample: Sample, template: Conversation, *, mm_use_im_start_end: bool) -> list[Turn]:
    turns = list(sample.turns)
    if sample.image is not None:
        texts = [
            place_image_token(turn.text, template.version, mm_use_im_start_end=mm_use_im_start_end)
            for turn in turns
        ]
        turns = [Turn(turn.speaker, text) for turn, text in zip(turns, texts, strict=True)]
    return list(without_opening(turns, template))


def without_opening(turns: Sequence[Turn], template: Conversation) -> Sequence[Turn]:
    """Return the turns without a first one from the model, which most templates cannot hold."""
    keeps_opening = template.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.PLAIN)
    if turns and turns[0].speaker != "human" and not keeps_opening:
        return turns[1:]
    return turns


def _spans_by_round(
    text: str, answers: Sequence[Span], ids: list[int], encode: Encode, tokenizer: Tokenizer
) -> list[Span] | None:
    """Locate each answer's ids by tokenizing every piece of text once more; None if that could be wrong.

    It is right where answers end with the tokenizer's own end token: no token crosses it, so the text after
    it gets the same ids as if only the end token came before.
    """
    mark = tokenizer.eos_token
    if not mark or not all(text.endswith(mark, start, end) for start, end in answers):
        return None
    opening = encode(mark)
    marks = [position for position, token in enumerate(ids) if token == tokenizer.eos_token_id]
    if opening[-1:] != [tokenizer.eos_token_id] or len(marks) != text.count(mark):
        return None
    spans: list[Span] = []
    char, position = 0, 0  # text[:char] is ids[:position]
    for start, end in answers:
        asked = encode(mark + text[char:start])[len(opening) :] if char else encode(text[:start])
        first = position + len(asked)
        if ids[position:first] != asked:
            return None
        char, position = end, marks[text.count(mark, 0, end) - 1] + 1
        spans.append((first, position))
    return spans


def _spans_by_prefix(
    text: str, answers: Sequence[Span], ids: list[int], encode: Encode, tokenizer: Tokenizer
) -> list[Span] | None:
    """Locate each answer's ids by tokenizing the text up to its start and up to its end, or return None.

    A token may reach across the end of an answer ("><" over the end of "<|im_end|>"). The model has to
    generate it, so it belongs to the answer. If one reaches across the start, the result is
    None: it belongs to neither side.
    """
    spans: list[Span] = []
    for start, end in answers:
        first = _tokens_begun(ids, encode(text[:start]), tokenizer)
        stop = _tokens_begun(ids, encode(text[:end]), tokenizer)
        if first is None or stop is None or not first[1]:
            return None
        spans.append((first[0], stop[0]))
    return spans


def _tokens_begun(ids: list[int], prefix: list[int], tokenizer: Tokenizer) -> tuple[int, bool] | None:
    """Count the `ids` that begin inside the text of `prefix`, and tell whether they end with it."""
    pairs = enumerate(zip(ids, prefix, strict=False))
    shared = next((position for position, (one, other) in pairs if one != other), min(len(ids), len(prefix)))
    if shared == len(prefix):
        return shared, True
    if len(prefix) - shared > _REACH or min(prefix[shared:]) < 0:
        return None
    wanted = tokenizer.decode(prefix[shared:])
    for stop in range(shared + 1, min(shared + 2 * _REACH, len(ids)) + 1):
        if ids[stop - 1] < 0:  # an image
            return None
        found = tokenizer.decode(ids[shared:stop])
        if len(found) >= len(wanted):
            return (stop, found == wanted) if found.startswith(wanted) else None
    return None
