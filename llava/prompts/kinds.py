"""Sort training samples into kinds of question, for one validation loss per kind.

Each sample has the form of its prompt and, if its record names one, a question type. Records of the data
engine name a type; base records do not.
"""

from __future__ import annotations

from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX
from llava.schema import Sample

LETTER, SHORT, CONVERSATION, TEXT_ONLY = FORMS = ("letter", "short answer", "conversation", "text only")


def kinds(sample: Sample) -> tuple[str, ...]:
    """Return the sample's form and, if its record names one, its question type."""
    form = form_of(sample)
    return (form,) if sample.type in (None, form) else (form, str(sample.type))


def form_of(sample: Sample) -> str:
    """Return the sample's form, one of `FORMS`.

    Text only: no image. Letter, short answer: the sentence that asks for it stands in one of the questions,
    in LLaVA's mix in the first alone, for all of them. Conversation: everything else about an image.
    """
    if sample.image is None:
        return TEXT_ONLY
    asked = [turn.text for turn in sample.turns if turn.speaker == "human"]
    suffixes = {LETTER: LETTER_SUFFIX, SHORT: SHORT_SUFFIX}
    named = (form for form, suffix in suffixes.items() if any(suffix in text for text in asked))
    return next(named, CONVERSATION)
