"""Find the option letter in a free answer, for all multiple-choice benchmarks.

There are three rules, from strict to lenient; each benchmark documents its official one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}，。：；！（）【】、", " "))
LONG_ANSWER_WORDS = 3


def exact_letter(text: str, letters: Sequence[str]) -> str | None:
    """Return `text` if it is exactly one of `letters`, else None."""
    # Not `text in letters`: "" and "AB" are parts of the string "ABCD".
    return text if text in tuple(letters) else None


def scienceqa_letter(text: str, letters: Sequence[str]) -> str | None:
    """Find a single letter, a letter followed by ". ", or exactly one "The answer is X.".

    The last form may name a letter that is not among `letters`, as in the original.
    Source: LLaVA v1.2.2 llava/eval/eval_science_qa.py.
    """
    if exact_letter(text, letters):
        return text
    if len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def extract_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Find the letter that `text` means, given the option texts by letter.

    Step 1: exactly one option letter is a word of its own after punctuation is removed. A single "A" in more
    than three words does not count, because it may be the article. Step 2: exactly one option's text occurs
    in `text`, ignoring case. Otherwise None.
    Source: MMBench's matching steps 1 and 2 (as in VLMEvalKit and lmms-eval's static evaluator).
    """
    words = text.translate(MARKS).split()
    found = {word for word in words if word in options}
    if len(found) == 1 and not (found == {"A"} and len(words) > LONG_ANSWER_WORDS):
        return found.pop()
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option and option.lower() in lowered]
    return named[0] if len(named) == 1 else None
