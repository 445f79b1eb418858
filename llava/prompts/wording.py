"""The sentences that ask for a kind of answer, as LLaVA was trained on them: a changed word costs points.

A suffix is a line of its own after the question. This module does not know which benchmark uses which.

Sources: LLaVA docs/Evaluation.md (short answer, letter, unanswerable, OCR line) and model_vqa_mmbench.py (the
Chinese letter sentence, options one a line); the same sentences stand in its training mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from llava.constants import DEFAULT_IMAGE_TOKEN

SHORT_SUFFIX = "Answer the question using a single word or phrase."
LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."
LETTER_SUFFIX_CN = "请直接回答选项字母。"
UNANSWERABLE_LINE = "When the provided information is insufficient, respond with 'Unanswerable'."
OCR_LINE_START = "Reference OCR token: "


def options_block(options: Sequence[str]) -> str:
    """Return the options, one per line, as "A. first"; at most 26."""
    assert len(options) <= len(ascii_uppercase), "options have one letter each"
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))


def with_image_line(text: str, *, image_token: str = DEFAULT_IMAGE_TOKEN) -> str:
    """Return `text` with the image token on a line before it."""
    return f"{image_token}\n{text}"


def ocr_line(tokens: Sequence[str]) -> str:
    """Return the line with the words read in an image. It follows the question, even if empty."""
    return OCR_LINE_START + ", ".join(tokens)


def with_suffix(question: str, *lines: str) -> str:
    """Return the question followed by its suffixes, one per line."""
    return "\n".join((question, *lines))
