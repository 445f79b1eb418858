"""Write a record as a question and an answer: direct, short answer or multiple choice. One function per mode.

Sources: the wording is that of LLaVA's own mix (llava_v1_5_mix665k), where the sentence that asks for a
letter or a short answer stands in the first question of a conversation only; the modes are those MiniGPT-4
trains on in MLLM-DataEngine (engine_da, engine_mc, engine_mcp), plus the short answer the records also hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase

from llava.data_engine.records import Choice, EngineRecord
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX, options_block, with_image_line, with_suffix
from llava.schema import Turn


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer; `suffix` is a sentence that only a conversation's first question has."""

    question: str
    answer: str
    suffix: str = ""

    def turns(self, *, opens: bool) -> tuple[Turn, Turn]:
        """Return the two turns. The first exchange of a conversation has the image and the suffix."""
        text = self.question
        if opens:
            text = with_image_line(with_suffix(text, self.suffix) if self.suffix else text)
        return Turn("human", text), Turn("gpt", self.answer)


@dataclass(frozen=True, slots=True)
class Mode:
    """One form of a record: its function, and the field it needs (a record without it has no such form)."""

    name: str
    needs: str
    ask: Callable[[EngineRecord, int], Exchange | None]


def direct(record: EngineRecord, seed: int) -> Exchange | None:
    """Return the question and the answer as a sentence."""
    return None if record.answer is None else Exchange(record.instruction, record.answer)


def short(record: EngineRecord, seed: int) -> Exchange | None:
    """Return the question and a short answer."""
    if record.short_answer is None:
        return None
    return Exchange(record.instruction, record.short_answer, SHORT_SUFFIX)


def choice(record: EngineRecord, seed: int) -> Exchange | None:
    """Return the question with its options, and the letter."""
    return None if record.choice is None else _with_options(record.instruction, record.choice)


def choice_shuffled(record: EngineRecord, seed: int) -> Exchange | None:
    """Return `choice` with the options in another order, which depends on seed and name only."""
    if record.choice is None:
        return None
    rng = Random(f"{seed} {record.name}")
    return _with_options(record.instruction, shuffled(record.choice, rng))


def shuffled(choice: Choice, rng: Random) -> Choice:
    """Return the options in a different order, drawn uniformly, with the correct index."""
    order = list(range(len(choice.options)))
    while True:
        rng.shuffle(order)
        options = tuple(choice.options[index] for index in order)
        # The correct option's text is unique, so there always is an order that reads differently.
        if options != choice.options:
            return Choice(options, order.index(choice.correct))


def _with_options(question: str, choice: Choice) -> Exchange:
    text = with_suffix(question, options_block(choice.options))
    return Exchange(text, ascii_uppercase[choice.correct], LETTER_SUFFIX)


MODES = {
    mode.name: mode
    for mode in (
        Mode("da", "answer", direct),
        Mode("sa", "short_answer", short),
        Mode("mc", "choice", choice),
        Mode("mcp", "choice", choice_shuffled),
    )
}
# About 2.5 conversations an item, as the published checkpoint's step count says (9,570 steps of 128).
DEFAULT_MODES = ("da", "mc", "mcp")
