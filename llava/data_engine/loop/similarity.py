"""How alike two questions are, by measures to choose from. To add one, add a row to `MEASURES`.

A measure has a threshold of its own: 0.9 of one is not 0.9 of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from llava.errors import SettingsError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Compare = Callable[[int], Sequence[float]]
"""The similarities, up to 1, of the text with this index to all texts."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of similarity: what makes a `Compare` of texts, and above which value two are alike."""

    prepare: Callable[[Sequence[str]], Compare]
    threshold: float


def character_vectors(texts: Sequence[str]) -> csr_matrix:
    """Return a row for each text: its character 2- to 4-grams within words, weighted by TF-IDF, of length 1.

    Raises:
        SettingsError: scikit-learn is missing.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise SettingsError(
            f'the measure tfidf needs `pip install "llava[engine]"` ({error})', code="missing-package"
        ) from error

    # Texts without a letter or digit have no n-gram; the frame gives them one.
    framed = [f"_{text}_" for text in texts]
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit_transform(framed)


def _by_characters(texts: Sequence[str]) -> Compare:
    """Compare by the cosine of the texts' `character_vectors`."""
    vectors = character_vectors(texts)
    columns = vectors.T.tocsr()  # made once: a product with another form would convert it every time
    return lambda index: (vectors[index] @ columns).toarray()[0]


def _by_spacy(texts: Sequence[str]) -> Compare:
    """Compare by the cosine of spaCy's document vectors, as the paper does."""
    try:
        import spacy

        language = spacy.load("en_core_web_md")
    except (ImportError, OSError) as error:
        raise SettingsError(
            "the measure spacy needs `pip install spacy` and `python -m spacy download en_core_web_md`"
            f" ({error})",
            code="missing-package",
        ) from error
    import numpy as np

    vectors = np.array([document.vector for document in language.pipe(texts)])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return lambda index: vectors @ vectors[index]


# At 0.7, questions with one other word are alike, such as "What is the man doing?" and "... the person ...";
# GQA's questions then shrink by 12 %, short ones of VizWiz by 51 % (1,500 of each).
MEASURES = {"tfidf": Measure(_by_characters, 0.7), "spacy": Measure(_by_spacy, 0.9)}


def pick_distinct(texts: Sequence[str], compare: Compare, threshold: float, random: Random) -> list[int]:
    """Return the indices of texts of which no two are more alike than `threshold`, in the order picked.

    Takes a random text, drops all that are more like it than the threshold, and goes on with the rest.
    Source: MLLM-DataEngine, algorithm 1.
    """
    import numpy as np

    order = list(range(len(texts)))
    random.shuffle(order)
    gone = np.zeros(len(texts), dtype=bool)
    picked = []
    for index in order:
        if not gone[index]:
            picked.append(index)
            gone |= np.asarray(compare(index)) > threshold
    return picked
