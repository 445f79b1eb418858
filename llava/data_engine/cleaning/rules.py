"""The rules that a text alone can decide. Each is a function that returns what is wrong, or None.

A rule sees one record. What needs many is in `duplicates`, `types` and `blind`, what needs the image in
`consistency`. To add a rule, write the function and add it to RULES; its name is the reason that is counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llava.data_engine.cleaning.words import normal_words, says
from llava.data_engine.records import EngineRecord, parse_record
from llava.data_engine.text import Unusable
from llava.schema import JsonObject

OPTIONS = 4


@dataclass(frozen=True, slots=True)
class Draft:
    """A record on its way through the rules.

    `question`, `options`, `answer` and `short_answer` are as `normal_words` returns them.
    """

    request: str
    type: str
    row: JsonObject
    record: EngineRecord
    question: str
    options: tuple[str, ...]
    correct: int
    answer: str
    short_answer: str

    @property
    def right(self) -> str:
        """The correct option."""
        return self.options[self.correct]

    @property
    def wrong(self) -> tuple[str, ...]:
        """The other options."""
        return self.options[: self.correct] + self.options[self.correct + 1 :]


Rule = Callable[[Draft], str | None]

_HOSTILE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    r"|<\s*[/!?]?\s*[A-Za-z][^<>]*>?|<!--|<\||<<|&(?:lt|gt|amp|quot|apos|#\w+);|javascript:"
    r"|(?:^|\s)(?:USER|ASSISTANT|SYSTEM|HUMAN)\s*:|(?:^|\n)\s*(?:User|Assistant|System|Human)\s*:"
    r"|\[/?INST\]|###|(?i:\b(?:ignore|disregard)\s+(?:all\s+|any\s+)?(?:the\s+)?(?:previous|above|prior)\b)"
)
_SOURCE = re.compile(
    r"\bbounding[ -]?box|\bbbox|\bcoordinates?\b|\blocated at \[|\[\s*\d*\.?\d+(?:\s*,\s*\d*\.?\d+){3}\s*\]"
    r"|\((?:\s*\d*\.\d+\s*,){3}\s*\d*\.\d+\s*\)"
    r"|\b(?:image|given|provided|these|region|above|following)\s+(?:\w+\s+)?(?:description|caption)s?\b"
    r"|\b(?:the|to)\s+(?:descriptions?|captions?)\s+(?:says?|states?|mentions?|describes?|given|provided|above)"
    r"|\b(?:based on|according to|from|in|as per)\s+(?:the\s+)?(?:descriptions?|captions?)\b"
    r"|\b(?:image|provided|given)\s+information\b",
    re.IGNORECASE,
)
_TELLS = re.compile(r"\b(?:(?:the\s+)?(?:correct|right)\s+answer\s+is|answer\s*:|hint\s*:)", re.IGNORECASE)
# Between fields that are searched together: no pattern reaches over it.
_BETWEEN = "\n|\n"
_TAIL = re.compile(r"[,(;:\u2013\u2014]")
# Words that a question needs although they may be the answer.
_NO_LEAK = frozenset({"yes", "no", "none", "left", "right", "true", "false"})


def find_hostile_text(row: object) -> str | None:
    """Return the first text in a record that a page or a prompt would obey: tags, markers, control text."""
    text = _BETWEEN.join(_texts(row))
    # Full-width brackets become plain ones.
    found = _HOSTILE.search(text if text.isascii() else unicodedata.normalize("NFKC", text))
    return repr(found.group().strip()) if found else None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def make_draft(row: JsonObject, request: str, kind: str) -> Draft:
    """Return the record as the rules see it.

    Args:
        row: The record with the request's image and type.
        request: The request's id.
        kind: The question type that was asked for.

    Raises:
        Unusable: `schema`: a field is missing or of another form, or the letter names no option.
    """
    try:
        record = parse_record(row, 0)
        if fault := next(iter(record.faults.values()), None):
            raise fault
    except Unusable as fault:
        raise Unusable("schema", f"{fault.reason} {fault.detail}".strip()) from fault
    if record.choice is None:
        raise Unusable("schema", "options_missing")
    texts = [record.instruction, *record.choice.options, record.answer or "", record.short_answer or ""]
    question, *options, answer, short_answer = map(normal_words, texts)
    correct = record.choice.correct
    return Draft(request, kind, row, record, question, tuple(options), correct, answer, short_answer)


def skipped(draft: Draft) -> str | None:
    """Find "skip" as a whole field: the model declined. "skip rope" and "skipper" are words of a question."""
    fields = {"question": draft.question, "answer": draft.answer, "short answer": draft.short_answer}
    found = [name for name, text in fields.items() if text in ("skip", "skipped")]
    found += ["option" for option in draft.options if option == "skip" and draft.right == "skip"]
    return f"{found[0]} is skip" if found else None


def four_options(draft: Draft) -> str | None:
    """Want four options that differ in more than case, marks, articles and the way numbers are written."""
    if len(draft.options) != OPTIONS:
        return f"{len(draft.options)} options"
    doubled = [option for option in draft.options if draft.options.count(option) > 1]
    return f"{doubled[0]!r} is there twice" if doubled else None


def letter(draft: Draft) -> str | None:
    """Want the letter's option to be what the short answer and the answer say.

    A record without either has nothing to compare. An answer in other words than the options' passes only
    if the short answer names the letter's option.
    """
    right = draft.right
    short_agrees = draft.short_answer == right
    if draft.short_answer and not short_agrees:
        if draft.short_answer in draft.wrong:
            return f"the letter says {right!r}, the short answer {draft.short_answer!r}"
        short_agrees = says(right, draft.short_answer) or says(draft.short_answer, right)
        if not short_agrees:
            return f"the short answer {draft.short_answer!r} is not {right!r}"
    if draft.answer:
        said = [option for option in draft.wrong if says(draft.answer, option) and not says(right, option)]
        if says(draft.answer, right) or says(right, draft.answer):
            return None
        if said:
            return f"the letter says {right!r}, the answer {said[0]!r}"
        if not short_agrees:
            return f"the answer does not say {right!r}"
    return None


def leaked(draft: Draft) -> str | None:
    """Find the correct option in the question, unless it names another one, too ("red or blue").

    The whole answer is a leak, and so is the right option behind the last comma or bracket ("..., left?").
    """
    if told := _TELLS.search(draft.record.instruction):
        return told.group()
    right, question = draft.right, draft.question
    if not says(question, right):
        return None
    tail = normal_words(_TAIL.split(draft.record.instruction)[-1])
    if tail in (right, f"it is {right}") or (draft.answer != right and says(question, draft.answer)):
        return f"it says {right!r}"
    # "top" is no other option where it stands in "top left" only.
    rest = f" {question} ".replace(f" {right} ", " , ")
    if right in _NO_LEAK or any(says(rest, option) for option in draft.wrong):
        return None
    return f"it says {right!r}"


def mentions_source(draft: Draft) -> str | None:
    """Find words about descriptions, captions, boxes or coordinates: the model read, it did not look."""
    record = draft.record
    options = record.choice.options if record.choice else ()
    texts = (record.instruction, *options, record.answer or "", record.short_answer or "")
    found = _SOURCE.search(_BETWEEN.join(texts))
    return found.group() if found else None


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (skipped, four_options, letter, leaked, mentions_source)
}
"""The rules in their order; the first that finds something is the reason."""


def check_record(row: JsonObject, request: str, kind: str) -> Draft:
    """Return the record as the rules see it, if none of them rejects it.

    The arguments are those of `make_draft`.

    Raises:
        Unusable: With the rule's name as the reason.
    """
    if hostile := find_hostile_text(row):
        raise Unusable("hostile_text", f"found {hostile}")
    draft = make_draft(row, request, kind)
    for name, rule in RULES.items():
        if detail := rule(draft):
            raise Unusable(name, detail)
    return draft
