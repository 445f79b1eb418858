"""Write LLaMA's tokenizer as a `tokenizer.json` that gives the original's ids, images included.

The original cuts a prompt at its images and tokenizes each piece as a text of its own, so that the text
after an image begins with SentencePiece's space sign (tokenizer_image_token in LLaVA v1.2.2 mm_utils.py).
The tokenizers that transformers makes from `tokenizer.model` do not put it there. Here a normalizer does.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import CheckpointError
from llava.prompts.encode import tokenizer_image_token
from llava.tokenizer import SPACE, LlamaSentencePieceTokenizer

# Texts that tell one tokenizer from another: runs of spaces, line ends, other scripts, special tokens.
_PROBES = (
    "USER: <image>\nWhat is this? ASSISTANT: A  cat.</s>USER: Why?\n\n ASSISTANT:",
    "<image>\n    if x:\n\t\treturn   [1, 23]",
    "  two <image><image> images</s> end <image>",
    "ends in a special token</s>",
    "é ﬁ ① 日本語 Ａ \u3000 🙂 \u00a0 naïve ½",
)


def make_fast_tokenizer(slow: LlamaSentencePieceTokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer for transformers with the same ids, and `<image>` as one more token.

    Raises:
        CheckpointError: The vocabulary is not of the kind that LLaMA has, so ids would differ.
    """
    image = AddedToken(DEFAULT_IMAGE_TOKEN, normalized=not slow.legacy, special=True)
    added = [slow.added_tokens_decoder[index] for index in sorted(slow.added_tokens_decoder)]
    backend = Tokenizer(_byte_pair_model(slow))
    backend.normalizer = _normalizer(slow, [*map(str, added), DEFAULT_IMAGE_TOKEN])
    backend.add_special_tokens(
        [
            *(
                AddedToken(
                    str(token),
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=not slow.legacy,
                    special=True,
                )
                for token in added
            ),
            image,
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    start, end = str(slow.bos_token), str(slow.eos_token)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A" if slow.add_bos_token else "$A",
        special_tokens=[(start, slow.bos_token_id)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=str(slow.unk_token),
        bos_token=start,
        eos_token=end,
        pad_token=str(slow.pad_token or slow.unk_token),
        padding_side="left",  # what batched generation needs
        model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
        image_token=DEFAULT_IMAGE_TOKEN,
        legacy=slow.legacy,  # for the way back
    )
    require_equal_ids(slow, fast, _PROBES)
    return fast


def require_equal_ids(
    slow: LlamaSentencePieceTokenizer, fast: PreTrainedTokenizerFast, texts: tuple[str, ...]
) -> None:
    """Raise a `CheckpointError` if the two tokenizers disagree on a text."""
    image = fast.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    for text in texts:
        wanted = [
            image if index == IMAGE_TOKEN_INDEX else index for index in tokenizer_image_token(text, slow)
        ]
        if fast(text).input_ids != wanted:
            raise CheckpointError(
                f"{slow.vocab_file}: no tokenizer.json gives its ids: they differ for {text!r}; only BPE "
                "vocabularies without normalization, such as LLaMA's, can be exported",
                code="tokenizer-differs",
            )


def _byte_pair_model(slow: LlamaSentencePieceTokenizer) -> BPE:
    model = slow.sp_model
    indexes = range(model.get_piece_size())
    vocabulary = {model.id_to_piece(index): index for index in indexes}
    bytes_of = [index for index in indexes if model.is_byte(index)]
    reserved = {index for index in indexes if model.is_control(index) or model.is_unknown(index)}
    # SentencePiece merges text only: not the signs of bytes and of special tokens.
    scores = {
        piece: model.get_score(index)
        for piece, index in vocabulary.items()
        if index not in reserved and not model.is_byte(index)
    }
    merges = generate_merges({piece: vocabulary[piece] for piece in scores}, scores)
    return BPE(
        vocabulary,
        merges,
        unk_token=model.id_to_piece(model.unk_id()),
        fuse_unk=True,
        byte_fallback=bool(bytes_of),
    )


def _normalizer(slow: LlamaSentencePieceTokenizer, special: list[str]) -> normalizers.Normalizer:
    """Return what puts the space sign where SentencePiece puts it.

    With `legacy`, before every text between special tokens. Without, before a text's start and after an
    image, unless a special token follows: hence special tokens are searched after this step.
    """
    spaces = normalizers.Replace(" ", SPACE)
    if slow.legacy:
        return normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    follows = "|".join([*map(re.escape, special), r"\z"])
    image = DEFAULT_IMAGE_TOKEN
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(rf"\A(?!{follows})"), SPACE),
            normalizers.Replace(Regex(rf"{image}(?!{follows})"), image + SPACE),
            spaces,
        ]
    )
