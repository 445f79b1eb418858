"""Clean the texts of engine records: trim them, join lines where a template needs one line, or refuse them.

A text that would change the prompt itself (an end-of-answer marker, the template's own words) is refused,
not repaired: what its writer meant is unknown, and upstream's label masking would silence the whole sample.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)

_MARKERS = (
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IM_END_TOKEN,
    "<s>",
    "</s>",
    "<unk>",
)
# Control characters and half surrogates have no place in a sentence and no token of their own.
_FORBIDDEN = re.compile(
    "|".join(map(re.escape, _MARKERS)) + r"|(?:^|\s)ASSISTANT:(?:\s|$)|[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]"
)
_LINE_BREAK = re.compile(r"\r\n|[\r\n\v\f\x85\u2028\u2029]")
_OUTER_IMAGE_TOKENS = re.compile(rf"^(?:\s*{DEFAULT_IMAGE_TOKEN})+|(?:{DEFAULT_IMAGE_TOKEN}\s*)+$")


class Unusable(Exception):
    """Raised when a field or record cannot be used: a stable reason, and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def clean(value: object, field: str, *, one_line: bool) -> str:
    """Return `value` as trimmed text, with case and punctuation kept. A whole number becomes its digits.

    Args:
        value: What the record holds.
        field: The name that reasons start with.
        one_line: Turn line breaks, with the white space around them, into one space.

    Raises:
        Unusable: `FIELD_not_text`, `FIELD_empty` or `FIELD_control_text`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Unusable(f"{field}_not_text", f"found {type(value).__name__}")
    is_plain = value.isascii() and value.isprintable() and "<" not in value and "ASSISTANT:" not in value
    if is_plain and (plain := value.strip()):
        return plain  # nearly all texts, and quicker: no marker and no line break can be in it
    lines = [line.strip() if one_line else line for line in _LINE_BREAK.split(value.strip())]
    text = " ".join(filter(None, lines)) if one_line else "\n".join(lines)
    if found := _FORBIDDEN.search(text):
        raise Unusable(f"{field}_control_text", f"found {found.group().strip()!r}")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise Unusable(f"{field}_empty")
    return text


def without_outer_image_tokens(value: object) -> object:
    """Return a question without `<image>` at its start or end; the conversion adds the token itself."""
    return _OUTER_IMAGE_TOKENS.sub("", value) if isinstance(value, str) else value


def digest(text: str) -> int:
    """Return 64 bits that stand for `text` in a set: 70 bytes in memory, where a question takes 170.

    Among two million texts the chance that any two have the same digest is 1e-7.
    """
    # Ids of a base may hold half surrogates.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
