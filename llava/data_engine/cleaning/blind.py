"""Check that the right option cannot be guessed without the image better than by chance.

A classifier of texts learns from some records which of four options is right, and guesses the others'. It
is free and sees little: only an obvious give-away shows (the longest option, a word of right options only).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llava.data_engine.cleaning.rules import OPTIONS
from llava.data_engine.cleaning.words import normal_words
from llava.data_engine.text import digest
from llava.schema import JsonObject
from llava.scoring.intervals import wilson

FOLDS = 5
# Fewer records teach nothing; of more, a sample is enough for an interval of one point.
FEWEST, MOST = 100, 20_000


@dataclass(frozen=True, slots=True)
class BlindItem:
    """What the probe sees of a record, and the image, whose questions stay in one fold."""

    image: str
    type: str
    question: str
    options: tuple[str, ...]
    correct: int


def probe_blind(items: Sequence[BlindItem], *, seed: int = 42) -> JsonObject:
    """Measure how often a classifier that sees only the texts picks the right option.

    Cross-validation: the records are divided by image into 5 folds, and each fold is guessed by a classifier
    that was trained on the others.

    Args:
        items: Records with four options each.
        seed: The seed of the folds and of the training.

    Returns:
        `accuracy` with its interval `low` to `high` (0 to 1), `chance`, `n`, the same for each of `types`.
        `flagged` is true if the interval lies above chance: texts alone give answers away. With too few
        records or images to tell, `accuracy` is None.
    """
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier

    folds = np.array([digest(f"{seed} {item.image}") % FOLDS for item in items])
    if len(items) < FEWEST or len(set(folds)) == 1:
        return guess_report(items, None)
    vectorizer = HashingVectorizer(n_features=1 << 18, token_pattern=r"\S+", norm=None, alternate_sign=False)
    features = vectorizer.transform([text for item in items for text in _texts(item)])
    labels = np.array([place == item.correct for item in items for place in range(OPTIONS)])
    guesses = np.empty(len(items), dtype=int)
    for fold in set(folds):
        inside = np.repeat(folds == fold, OPTIONS)
        model = SGDClassifier(loss="log_loss", alpha=1e-4, random_state=seed)
        model.fit(features[~inside], labels[~inside])
        guesses[folds == fold] = model.decision_function(features[inside]).reshape(-1, OPTIONS).argmax(axis=1)
    return guess_report(items, [guess == item.correct for guess, item in zip(guesses, items, strict=True)])


def guess_report(items: Sequence[BlindItem], hits: Sequence[bool] | None) -> JsonObject:
    """Return the share of right guesses with its interval, overall and by type.

    Args:
        items: What was guessed.
        hits: Whether each guess was right; None where there were too few items to guess.
    """
    chance = 1 / OPTIONS
    if not hits:
        return {"n": len(items), "chance": chance, "accuracy": None, "flagged": False, "types": {}}
    count = Counter(item.type for item in items)
    right = Counter(item.type for item, hit in zip(items, hits, strict=True) if hit)
    types = {name: _share(right[name], count[name]) for name in sorted(count)}
    return {"chance": chance, **_share(right.total(), count.total()), "types": types}


def _share(right: int, n: int) -> JsonObject:
    low, high = wilson(right, n)
    return {"n": n, "accuracy": right / n, "low": low, "high": high, "flagged": low > 1 / OPTIONS}


def _texts(item: BlindItem) -> list[str]:
    """Return a text of features for each option: its words, whether the question says them, its length."""
    question, options = normal_words(item.question).split(), [normal_words(option) for option in item.options]
    lengths = sorted({len(option) for option in options})
    texts = []
    for option in options:
        words = option.split()
        marks = [f"word={word}" for word in words] + [f"option={option.replace(' ', '_')}"]
        marks += [f"asked={word in question}" for word in words]
        marks += [f"begins={' '.join(question[:2]).replace(' ', '_')}|{word}" for word in words]
        marks += [f"rank={lengths.index(len(option))}of{len(lengths)}"]
        marks += ["longest"] * (len(lengths) > 1 and len(option) == lengths[-1])
        texts.append(" ".join(marks))
    return texts
