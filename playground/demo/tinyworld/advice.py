"""Which rules of a prompt keep the provider from which mistakes, for `llava engine prompt suggest`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COUNTS = re.compile(r"^How often each fault was found: (.+?)\. Examples:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Advice:
    """A rule, the kinds of mistakes that it prevents, and the faults (tags or cleaning rules) it is for."""

    rule: str
    prevents: frozenset[str]
    faults: frozenset[str]


def _advice(rule: str, prevents: str, faults: str) -> Advice:
    return Advice(rule, frozenset(prevents.split(", ")), frozenset(faults.split(", ")))


ADVICE = (
    _advice(
        "Look at the image again and make sure that the answer is right.",
        "wrong answer, benchmark look-alike",
        "wrong answer, inconsistent, benchmark_question",
    ),
    _advice("The letter is that of the right option.", "wrong letter", "letter"),
    _advice("The question must not name its answer.", "leaked answer", "leaked"),
    _advice(
        "No other option may be right in other words.", "two right options", "two right, four_options, schema"
    ),
    _advice("Keep to the type that is asked for.", "off type", "other type, off_type"),
    _advice("Ask each question once.", "exact duplicate, near duplicate", "duplicate"),
    _advice("Write plain text without tags.", "hostile text", "hostile_text"),
    _advice("Write whole JSON and nothing else.", "rubbish, half JSON", "unparsable"),
)


def is_prevented(mistake: str, prompt: str) -> bool:
    """Whether a rule in the prompt keeps the provider from a kind of mistake."""
    return any(mistake in advice.prevents and advice.rule in prompt for advice in ADVICE)


def advice_for(prompt: str) -> Advice | None:
    """The advice against the most frequent fault that a prompt counts and that there is advice for."""
    counts = _COUNTS.search(prompt)
    for counted in counts[1].split(", ") if counts else ():
        fault = counted.rpartition(" ")[0]
        for advice in ADVICE:
            if fault in advice.faults and advice.rule not in prompt:
                return advice
    return None
