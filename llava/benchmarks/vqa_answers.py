"""Normalize and score short free answers as the VQA challenges do.

Two programs share the steps below. The official VQA evaluator processes answers only when the human answers
differ; the "EvalAI" processor of MMF, which LLaVA uses for submissions, always does.
Source: GT-Vision-Lab/VQA vqaEval.py; LLaVA v1.2.2 llava/eval/m4c_evaluator.py. Their quirks are kept because
published numbers depend on them: a period stays only before a digit, and only the first 32 are handled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = MappingProxyType({word: str(n) for n, word in enumerate(_DIGITS)} | {"none": "0"})

# The key is the word without its apostrophe.
_ONE_APOSTROPHE = """
    'twas I'm I've ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
    how'd how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't o'clock oughtn't
    shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll
    that's there'd there're there's they'd they'll they're they've wasn't we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've
    wouldn't y'all you'd you'll you're you've
"""
# Each has two keys, in which one of the apostrophes is missing.
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll
"""
_ODD = {
    "notve": "not've",
    "let's": "let's",
    "she's": "she's",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
}


def _contractions() -> dict[str, str]:
    table = dict(_ODD)
    for word in _ONE_APOSTROPHE.split():
        table[word.replace("'", "", 1)] = word
    for word in _TWO_APOSTROPHES.split():
        before, middle, after = word.split("'")
        table[f"{before}{middle}'{after}"] = word
        table[f"{before}'{middle}{after}"] = word
    return table


CONTRACTIONS: Mapping[str, str] = MappingProxyType(_contractions())


def strip_punctuation(text: str) -> str:
    """Delete punctuation marks or replace them by spaces; delete periods not followed by a digit.

    A mark is deleted if it is next to a space anywhere in `text`, or if `text` has a comma inside a number;
    otherwise each occurrence becomes a space.
    """
    result = text
    comma_in_number = COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        if f"{mark} " in text or f" {mark}" in text or comma_in_number:
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return PERIOD.sub("", result, count=MOST_PERIODS)


def plain_words(text: str) -> str:
    """Lower-case `text`, write number words as digits, drop articles, restore apostrophes."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise(text: str) -> str:
    """Normalize `text` as the EvalAI processor does: "A red car, and a bus" becomes "red car and bus"."""
    return _processed(_one_line(tokenize_words(text)))


def tokenize_words(text: str) -> str:
    """Lower-case `text`, delete commas and question marks, and put a space before 's."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def official_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Return the official VQA evaluator's accuracy (0 to 1) of `answer` against the human answers."""
    answer, humans = _one_line(answer), [_one_line(human) for human in humans]
    if len(set(humans)) > 1:
        humans = [_processed(human) for human in humans]
        answer = _processed(answer)
    return leave_one_out(answer, humans)


def normalised_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Return the accuracy (0 to 1) after normalizing answer and human answers (TextVQA's rule)."""
    return leave_one_out(normalise(answer), [normalise(human) for human in humans])


def leave_one_out(answer: str, humans: Sequence[str]) -> float:
    """Return the mean over humans, each left out in turn, of min(1, matches among the others / 3)."""
    matches = sum(human == answer for human in humans)
    left_out = (min(1.0, (matches - (human == answer)) / 3) for human in humans)
    return sum(left_out) / len(humans)


# VQAv2 has two million human answers, but only some ten thousand distinct ones.
@lru_cache(maxsize=1 << 17)
def _processed(text: str) -> str:
    return plain_words(strip_punctuation(text))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
