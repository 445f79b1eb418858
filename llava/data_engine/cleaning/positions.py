"""Shuffle options, and test whether the right one is at each place equally often."""

from __future__ import annotations

import random
import re
from collections import Counter
from string import ascii_uppercase

from llava.data_engine.cleaning.rules import OPTIONS
from llava.data_engine.records import Choice
from llava.data_engine.text import digest
from llava.schema import JsonObject

# "All of the above" is wrong in the first place, "both A and B" after any move.
_PLACED = re.compile(
    r"\b(?:above|below)\b|\b(?:both|either|neither|only)\s+\(?[A-D]\b|^[A-D] and [A-D]$", re.I
)


def shuffle_options(choice: Choice, key: str, seed: int) -> Choice:
    """Return the options in an order that depends on `key` and `seed` only; those that name places stay."""
    if any(_PLACED.search(option) for option in choice.options):
        return choice
    order = list(range(len(choice.options)))
    random.Random(digest(f"{seed}\n{key}")).shuffle(order)
    return Choice(tuple(choice.options[place] for place in order), order.index(choice.correct))


def balance_report(counts: Counter[int]) -> JsonObject:
    """Return how often each letter is right, and the chi-square test that all are so equally often."""
    from scipy.stats import chisquare

    observed = [counts[place] for place in range(OPTIONS)]
    letters = dict(zip(ascii_uppercase, observed, strict=False))
    if not sum(observed):
        return {"letters": letters, "chi_square": None, "p": None}
    statistic, p = chisquare(observed)
    return {"letters": letters, "chi_square": float(statistic), "p": float(p)}
