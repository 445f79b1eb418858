"""Ask a provider about records: whether the answer is right, what type a question is, what can be guessed.

All calls go through the ledger and the budget of generation, so none is paid for twice.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from llava.data_engine.cleaning.blind import BlindItem, guess_report
from llava.data_engine.cleaning.consistency import Reading
from llava.data_engine.cleaning.parse import find_objects
from llava.data_engine.cleaning.types import TypeCheck, TypedQuestion
from llava.data_engine.generation.generate import RoundRun
from llava.data_engine.question_types import SKILLS
from llava.schema import JsonObject

CHECKS = ("consistency", "types", "blind")
# Guesses, for an interval of about five points to each side.
BLIND_SAMPLE = 400

_READ = (
    "Look at the image. Name the letter of each option that is a right answer to the question: there may be"
    ' several, or none. Answer as JSON, {{"letters": ["A"]}}.\n\nQuestion: {question}\n{options}'
)
_GUESS = (
    "This is a question about an image that you cannot see. Guess the right option and name its letter."
    ' Answer as JSON, {{"letters": ["A"]}}.\n\nQuestion: {question}\n{options}'
)
_TYPE = (
    "Which of these types of questions about an image is the question below? Answer with the type's name as"
    ' JSON, {{"type": "{first}"}}, or with "{neither}".\n\n{types}\n\nQuestion: {question}'
)
NEITHER = "none of these"
_LETTER = re.compile(r"\W*([A-Z])(?:\W.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A server to ask.

    Attributes:
        run: What asks it, within the round's ledger and budget.
        images: Whether it sees the images; else it is told what is known about them.
        seed: Of the samples and the answers.
    """

    run: RoundRun
    images: bool = True
    seed: int = 42

    def read(self, readings: Sequence[Reading]) -> list[frozenset[int] | None]:
        """Return the options that the provider finds right in each image. An `Answerer`."""
        prompts = [
            (_READ.format(question=item.question, options=_lines(item.options)), item.request)
            for item in readings
        ]
        texts = self._ask((self._about_image(*prompt) for prompt in prompts), "letters")
        return [parse_letters(text, len(item.options)) for text, item in zip(texts, readings, strict=True)]

    def type_check(self, names: Sequence[str]) -> TypeCheck:
        """Return a `TypeCheck` that knows the types `names`. A question without an answer passes."""

        def check(questions: Sequence[TypedQuestion]) -> list[str | None]:
            listed = "\n".join(f"- {name}" for name in names)
            asked = (
                _TYPE.format(first=names[0], neither=NEITHER, types=listed, question=question.text)
                for question in questions
            )
            # Models also name a type that is not in the list.
            other = (skill.name for skill in SKILLS)
            known = {name.casefold(): name for name in (*other, *names, NEITHER)}
            said = (known.get(parse_type(text).casefold()) for text in self._ask(asked, "type"))
            return [
                found if found not in (None, question.type) else None
                for found, question in zip(said, questions, strict=True)
            ]

        return check

    def guess(self, items: Sequence[BlindItem]) -> JsonObject:
        """Return how many right options the provider guesses without the image, as `probe_blind` does."""
        sample = random.Random(self.seed).sample(list(items), min(BLIND_SAMPLE, len(items)))
        asked = (_GUESS.format(question=item.question, options=_lines(item.options)) for item in sample)
        texts = self._ask(asked, "letters")
        found = [parse_letters(text, len(item.options)) for text, item in zip(texts, sample, strict=True)]
        return guess_report(
            sample, [guess == {item.correct} for guess, item in zip(found, sample, strict=True)]
        )

    def _about_image(self, text: str, request: JsonObject) -> str | list[JsonObject]:
        if self.images:
            return [{"type": "text", "text": text}, {"type": "image_path", "path": request["image"]}]
        return f"What is in the image: {json.dumps(request.get('image_info'))}\n\n{text}"

    def _ask(self, contents: Iterable[str | list[JsonObject]], structure: str) -> list[str | None]:
        return self.run.ask(contents, structure, seed=self.seed, where="clean")


def parse_letters(text: str | None, count: int) -> frozenset[int] | None:
    """Return the indices of the options that an answer names, of `count`; None if it cannot be read."""
    if text is None:
        return None
    for value in find_objects(text):
        letters = value.get("letters")
        if isinstance(letters, list) and all(letter in [*ascii_uppercase[:count]] for letter in letters):
            return frozenset(ascii_uppercase.index(letter) for letter in letters)
    match = _LETTER.fullmatch(text)
    place = ascii_uppercase.index(match[1]) if match else count
    return frozenset([place]) if place < count else None


def parse_type(text: str | None) -> str:
    """Return the type that an answer names; "" if it cannot be read."""
    for value in find_objects(text or ""):
        if isinstance(value.get("type"), str):
            return str(value["type"])
    return (text or "").strip(" .\n\"'")


def _lines(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))
