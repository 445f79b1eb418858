"""Find questions of another type than was asked for, by keywords, a classifier, or any other check."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.data_engine.cleaning.words import normal_words
from llava.data_engine.text import digest

if TYPE_CHECKING:
    from scipy.sparse import spmatrix


@dataclass(frozen=True, slots=True)
class TypedQuestion:
    """A question, the type that was asked for, and the id of its request."""

    request: str
    text: str
    type: str


TypeCheck = Callable[[Sequence[TypedQuestion]], list[str | None]]
"""From questions to the type that each is instead of the one asked for, None where it fits."""

# Words without which a question is hardly of the type, and which no question of another type has.
_CUES = {
    "Instances Counting": re.compile(r"\bhow many\b|\bnumber of\b|\bcount\b"),
    "Text Understanding": re.compile(
        r"\b(?:written|writing|printed|spell(?:s|ed)?|read(?:s|ing)?|says?|text|words?|letters?)\b"
        r"|\b(?:title|brand|logo|label|number|name|sign|message|slogan|symbol|time|price|date)\b"
    ),
}
_STRICT = {
    "Instances Counting": re.compile(r"^how many\b"),
    "Text Understanding": re.compile(r"\b(?:is|are) (?:written|printed)\b|\bdoes .*\bsay\b"),
}
FEWEST_PER_TYPE = 50
# How sure a classifier must be of another type, and how likely the type asked for may be at most.
SURE, UNLIKELY = 0.6, 0.1
MOST_TRAINED = 10_000


def check_keywords(questions: Sequence[TypedQuestion]) -> list[str | None]:
    """Judge the types whose words are plain: counting and reading. A `TypeCheck`."""
    found: list[str | None] = []
    for question in questions:
        text, kind = question.text.casefold(), question.type
        other = next((name for name, cue in _STRICT.items() if name != kind and cue.search(text)), None)
        missing = kind in _CUES and not _CUES[kind].search(text)
        found.append(other or ("another type" if missing else None))
    return found


class LearnedTypes:
    """A `TypeCheck` that learns the types' words from the round itself, and judges what it did not see.

    Two classifiers are trained, each on half the requests; each judges the other half. A few questions of
    a wrong type among many do not change what the type's words are. With fewer than 50 questions of a type,
    no question is judged.
    """

    def __init__(self, questions: Sequence[TypedQuestion], *, seed: int = 42) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import SGDClassifier

        self._seed = seed
        self._vectorizer = HashingVectorizer(n_features=1 << 18, ngram_range=(1, 2), token_pattern=r"\S+")
        self._halves: list[SGDClassifier | None] = [None, None]
        for half in (0, 1):
            rows = [question for question in questions if self._half(question) == half][:MOST_TRAINED]
            labels = [question.type for question in rows]
            counts = {label: labels.count(label) for label in set(labels)}
            if len(counts) < 2 or min(counts.values()) < FEWEST_PER_TYPE / 2:
                continue
            model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed)
            self._halves[half] = model.fit(self._features(rows), labels)

    def __call__(self, questions: Sequence[TypedQuestion]) -> list[str | None]:
        found: list[str | None] = [None] * len(questions)
        for half, model in enumerate(self._halves):
            rows = [index for index, question in enumerate(questions) if self._half(question) != half]
            if model is None or not rows:
                continue
            chances = model.predict_proba(self._features([questions[index] for index in rows]))
            names = list(model.classes_)
            best = chances.argmax(axis=1)
            for row, chance, top in zip(rows, chances, best, strict=True):
                if (
                    questions[row].type in names
                    and chance[top] >= SURE
                    and chance[names.index(questions[row].type)] <= UNLIKELY
                ):
                    found[row] = names[top]
        return found

    def _half(self, question: TypedQuestion) -> int:
        return digest(f"{self._seed} {question.request}") & 1

    def _features(self, questions: Sequence[TypedQuestion]) -> spmatrix:
        return self._vectorizer.transform([normal_words(question.text) for question in questions])
