"""Find the option letter in a free answer, for all multiple-choice benchmarks.

There are three rules, from strict to lenient; each benchmark documents its official one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
MMBENCH_LETTERS = "ABCDE"
# How a letter may be written, in the order in which the forms are tried.
LETTER_FORMS = (
    "{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).",
)  # fmt: skip
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

    Step 1 looks for a letter from A to E as a word of its own: bare, else with one of a few marks, such as
    "B." or "(B)". The first form in which exactly one letter occurs decides; the answer is None if no option
    has that letter. A bare letter does not decide if more than three words contain a bare "A", which may be
    the article. Step 2: exactly one option's text occurs in `text`, ignoring case.

    Source: steps 1 and 2 of MMBench's own evaluation, which LLaVA's published scores come from (kept in
    lmms-eval's mmbench_evals.py). Today's VLMEvalKit differs from it where a letter is not among the last
    four words, in several marks at once ("**B**"), and where the letter is not one of the options.
    """
    words = text.split()
    for form in LETTER_FORMS:
        found = [letter for letter in MMBENCH_LETTERS if form.format(letter) in words]
        may_be_article = form == "{}" and "A" in found and len(words) > LONG_ANSWER_WORDS
        if len(found) == 1 and not may_be_article:
            return found[0] if found[0] in options else None
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option and option.lower() in lowered]
    return named[0] if len(named) == 1 else None
