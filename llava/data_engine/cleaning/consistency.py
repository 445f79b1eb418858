"""Ask a second reader, who has the image or its description, whether a record's answer is the only right one.

A wrong letter that the answer repeats, or a second right option in other words, no rule about texts can see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llava.data_engine.cleaning.rules import Draft
from llava.schema import JsonObject

Answerer = Callable[[str, Sequence[str], JsonObject], str]
"""From a question, its options and the request (image, image_info) to the option chosen, or other text."""
NEITHER = "None of these"


def check_consistency(draft: Draft, request: JsonObject, answer: Answerer) -> tuple[str, str] | None:
    """Return the rule that a record breaks and how, or None.

    The question is asked twice: as it is, and with the right option replaced by "None of these".

    Args:
        draft: The record.
        request: Its row of requests.jsonl.
        answer: Called once or twice.
    """
    choice = draft.record.choice
    assert choice is not None
    options = list(choice.options)
    right = options[choice.correct]
    if (said := answer(draft.record.instruction, options, request)) != right:
        return "inconsistent", f"another reader says {said[:100]!r}, not {right!r}"
    options[choice.correct] = NEITHER
    if (said := answer(draft.record.instruction, options, request)) != NEITHER:
        return "two_right_options", f"without {right!r} another reader says {said[:100]!r}"
    return None
