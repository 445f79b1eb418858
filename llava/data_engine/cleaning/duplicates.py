"""Find repeated questions: within a round, in earlier rounds, and in the benchmarks.

Two questions about one image are duplicates if they ask the same and have the same answer. The same question
about another image is none: "How many dogs are there?" can be asked of a thousand images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from llava.data_engine.cleaning.references import Reference, find_benchmark_image, image_key
from llava.data_engine.cleaning.rules import Draft
from llava.data_engine.cleaning.words import ask_the_same

# Out of 100, of rapidfuzz's ratio over sorted words: one word of a question of ten may differ.
ALIKE = 90
# Shorter questions ("What color is the car?") are written twice by chance.
FEWEST_WORDS = 8
SAME_OPTIONS = 3
PERMUTATIONS, BANDS = 64, 16


class SeenQuestions:
    """The questions accepted so far, by image."""

    def __init__(self) -> None:
        self._by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def find(self, image: str, question: str, right: str) -> str | None:
        """Return an earlier question about `image` that says the same, or None.

        An exactly equal question counts whatever its answer is.
        """
        for earlier, answer in self._by_image.get(image, ()):
            if earlier == question or (answer == right and ask_the_same(earlier, question)):
                return earlier
        return None

    def add(self, image: str, question: str, right: str) -> None:
        """Remember a question and its right answer, both as `normal_words` returns them."""
        self._by_image[image].append((question, right))


class BenchmarkIndex:
    """The benchmarks' wordings behind MinHash, and their images' names."""

    def __init__(self, references: Sequence[Reference], *, seed: int = 42) -> None:
        import rensa

        self._references, self._seed = references, seed
        # Sorted once: then the plain ratio is rapidfuzz's token_sort_ratio.
        self._sorted = [_sort_words(reference.question) for reference in references]
        self._lsh = rensa.RMinHashLSH(threshold=0.5, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._lsh.insert_many(self._hashes([reference.question for reference in references]))
        self.images: dict[str, str] = {
            image: reference.benchmark for reference in references for image in reference.images
        }

    def find_questions(self, drafts: Sequence[Draft]) -> list[Reference | None]:
        """Return for each draft the benchmark question that it looks like, or None.

        It looks like one if the words are nearly the same and nothing speaks for chance: the question has
        eight words or more, or three of its options are the benchmark's, too. A stock phrase of the benchmark
        counts for the images that it is asked about only.
        """
        from rapidfuzz import fuzz, process

        if not self._references:
            return [None] * len(drafts)
        near = self._lsh.query_all(self._hashes([draft.question for draft in drafts]))
        found: list[Reference | None] = []
        for draft, candidates in zip(drafts, near, strict=True):
            texts = {index: self._sorted[index] for index in candidates}
            alike = process.extract(
                _sort_words(draft.question), texts, scorer=fuzz.ratio, score_cutoff=ALIKE, limit=None
            )
            near_ones = (self._references[index] for _, _, index in alike)
            found.append(next((item for item in near_ones if self._looks_like(draft, item)), None))
        return found

    def find_image(self, image: str, coco_id: object = None) -> str | None:
        """Return the benchmark that has an image of this name or COCO id, or None."""
        return find_benchmark_image(self.images, image, coco_id)

    def _looks_like(self, draft: Draft, reference: Reference) -> bool:
        if not ask_the_same(draft.question, reference.question):
            return False
        if image_key(draft.record.image) in reference.images:
            return True
        if reference.is_stock:
            return False
        shared = len(reference.options.intersection(draft.options))
        return shared >= SAME_OPTIONS or draft.question.count(" ") + 1 >= FEWEST_WORDS

    def _hashes(self, questions: Iterable[str]) -> list[object]:
        import rensa

        hashes: list[object] = rensa.RMinHash.from_token_sets(
            [_shingles(question) for question in questions], PERMUTATIONS, self._seed
        )
        return hashes


def _sort_words(text: str) -> str:
    return " ".join(sorted(text.split()))


def _shingles(question: str) -> list[str]:
    words = question.split()
    return words + [f"{first} {second}" for first, second in pairwise(words)]
