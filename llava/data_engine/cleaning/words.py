"""Bring texts to a form in which two that say the same are equal."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_WORD = re.compile(r"\w+(?:[.,']\w+)*")
_NUMBERS = {
    name: str(value)
    for value, name in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    )
}
_LONGEST_REMEMBERED = 200
_ARTICLES = frozenset({"a", "an", "the"})


def normal_words(text: str) -> str:
    """Return the words of `text` with one space between: lower case, digits for numbers, no articles.

    A text that is nothing but articles or marks ("A", "?") keeps them, so that two such texts stay different.
    """
    return _remembered(text) if len(text) <= _LONGEST_REMEMBERED else _normal_words(text)


def _normal_words(text: str) -> str:
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = [_NUMBERS.get(word, word) for word in _WORD.findall(folded)]
    return " ".join(word for word in words if word not in _ARTICLES) or folded.strip()


# Options come again and again, and several rules look at the same question.
_remembered = lru_cache(maxsize=1 << 16)(_normal_words)


def says(text: str, phrase: str) -> bool:
    """Return whether `text` contains `phrase` as whole words; both as `normal_words` returns them."""
    return f" {phrase} " in f" {text} "


# Words that a question can gain, lose or swap without asking something else. A library's stop words would not
# do: scikit-learn's have "top", "front", "behind", "not", "which" and "three", which change what is asked.
_FILLERS = frozenset(
    """
    in on at of to for with by from and or is are was were be does do did there here this that it its
    so now can could you we see seen shown visible appears please tell
    image picture photo photograph scene
    """.split()  # noqa: SIM905
)
# Out of 100, of rapidfuzz's ratio of two words: a plural or a slip of the pen.
_SAME_WORD = 75
_MOST_ADDED = 1


def ask_the_same(first: str, second: str) -> bool:
    """Return whether two questions differ in fillers, endings or one added word only.

    A swapped word ("the left car", "the right car") asks something else. Both texts are as `normal_words`
    returns them.
    """
    from rapidfuzz import fuzz, process

    left, right = (Counter(word for word in text.split() if word not in _FILLERS) for text in (first, second))
    gone, new = list((left - right).elements()), list((right - left).elements())
    if not gone or not new:
        return len(gone) + len(new) <= _MOST_ADDED
    scores = process.cdist(gone, new, scorer=fuzz.ratio, score_cutoff=_SAME_WORD)
    return bool(scores.any(axis=0).all() and scores.any(axis=1).all())
