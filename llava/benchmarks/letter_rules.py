"""The option letter in a free answer: one place for every multiple-choice benchmark.

Three readings, from strict to generous; each benchmark says which is its official one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}，。：；！（）【】、", " "))
LONG_ANSWER_WORDS = 3


def exact(text: str, letters: Sequence[str]) -> str | None:
    """`text` when it is one of `letters` and nothing else."""
    # Not `text in letters`: "" and "AB" are parts of the string "ABCD".
    return text if text in tuple(letters) else None


def scienceqa(text: str, letters: Sequence[str]) -> str | None:
    """The letter alone; a letter followed by ". "; or the one "The answer is X." in `text`.

    The last form may name a letter that is not among `letters`, as in the original.
    Source: LLaVA v1.2.2 llava/eval/eval_science_qa.py.
    """
    if exact(text, letters):
        return text
    if len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def extract(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that `text` means, given letter -> option text, without a judge.

    First: exactly one option letter stands as a word of its own once punctuation is blanked (a lone "A" in
    more than three words may be the article, and is not trusted). Else: exactly one option's text occurs in
    `text`, case ignored. Else None.
    Source: MMBench's matching steps 1 and 2 (as in VLMEvalKit and lmms-eval's static evaluator).
    """
    words = text.translate(MARKS).split()
    found = {word for word in words if word in options}
    if len(found) == 1 and not (found == {"A"} and len(words) > LONG_ANSWER_WORDS):
        return found.pop()
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option and option.lower() in lowered]
    return named[0] if len(named) == 1 else None
