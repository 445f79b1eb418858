"""Show names and texts that others wrote as they are: on one line, in Markdown and in LaTeX."""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = re.compile(r"[\\*_\[\]~$]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "&#96;", "|": "&#124;"}
_LATEX = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "`": r"\textasciigrave{}",
    "\u2020": r"$\dagger$",
    "\u0394": r"$\Delta$",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0308": '"',
    "\u030c": "v ",
    "\u0327": "c ",
}


def printable(text: str) -> str:
    """Return a text on one line, without characters that steer a terminal or the direction of writing."""
    return "".join(character if character.isprintable() else " " for character in text)


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line, where it does not begin the line.

    No markup, HTML, link, code or table cell comes of it.
    """
    escaped = (_ENTITIES.get(character, character) for character in printable(text))
    return _MARKDOWN.sub(r"\\\g<0>", "".join(escaped)).replace("://", "&#58;//")


def escape_latex(text: str) -> str:
    """Return a text that LaTeX shows as it is, on one line.

    A character that not every LaTeX program and font has, such as a Chinese one, is spelled out: [U+4E2D].
    """
    escaped = "".join(map(_latex_character, printable(text))).replace("--", "-{}-").replace("--", "-{}-")
    # After the end of a row, [ or * would be an option of it.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    decomposed = unicodedata.normalize("NFD", character)
    letter, accent = decomposed[0], decomposed[1:]
    if letter.isascii() and letter.isalpha() and accent in _ACCENTS:
        return f"\\{_ACCENTS[accent]}{letter}"
    return f"[U+{ord(character):04X}]"
