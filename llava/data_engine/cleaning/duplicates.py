"""Find repeated questions: within a round, in earlier rounds, and in the benchmarks; and repeated images.

Two questions about one image are duplicates if they ask the same and have the same answer. The same question
about another image is none: "How many dogs are there?" can be asked of a thousand images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from llava.data_engine.cleaning.references import Reference, image_key
from llava.data_engine.cleaning.rules import Draft
from llava.data_engine.cleaning.words import ask_the_same
from llava.image_reading import image_path, read_image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Out of 100, of rapidfuzz's ratio over sorted words: one word of a question of ten may differ.
ALIKE = 90
# Shorter questions ("What color is the car?") are written twice by chance.
FEWEST_WORDS = 8
SAME_OPTIONS = 3
PERMUTATIONS, BANDS = 64, 16
# Of the 64 bits of a perceptual hash; imagehash's authors take up to about 10 for the same picture.
IMAGE_BITS = 6


class SeenQuestions:
    """The questions accepted so far, by image."""

    def __init__(self) -> None:
        self._by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def find(self, image: str, question: str, right: str) -> str | None:
        """Return an earlier question about `image` that says the same, or None.

        An exactly equal question counts whatever its answer is.
        """
        from rapidfuzz import fuzz

        for earlier, answer in self._by_image.get(image, ()):
            if earlier == question:
                return earlier
            near = answer == right and fuzz.token_sort_ratio(earlier, question, score_cutoff=ALIKE)
            if near and ask_the_same(earlier, question):
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
        eight words or more, or three of its options are the benchmark's, too. A wording that the benchmark
        itself asks about several images counts for these images only.
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
        keys = [image_key(image)]
        if isinstance(coco_id, int | str) and str(coco_id).isdecimal():
            keys.append(f"coco {int(coco_id)}")
        return next((self.images[key] for key in keys if key in self.images), None)

    def _looks_like(self, draft: Draft, reference: Reference) -> bool:
        if not ask_the_same(draft.question, reference.question):
            return False
        if image_key(draft.record.image) in reference.images:
            return True
        if len(reference.images) > 1:
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


class BenchmarkImages:
    """The benchmarks' pictures by perceptual hash, to compare a round's images with."""

    def __init__(self, known: Sequence[tuple[str, Path]], image_root: Path) -> None:
        self._names = [name for name, _ in known]
        self._hashes = hash_images([path for _, path in known])
        self._image_root = image_root
        self._found: dict[str, str | None] = {}

    def find(self, image: str) -> str | None:
        """Return the benchmark that has the same picture, or None. An image is decoded once.

        Raises:
            DataError: The image is missing or cannot be decoded.
        """
        if image not in self._found:
            near = find_near_images(
                hash_images([image_path(self._image_root, image, "a request")]), self._hashes
            )
            self._found[image] = self._names[near[0]] if near[0] >= 0 else None
        return self._found[image]


def hash_images(paths: Sequence[Path]) -> NDArray[np.uint64]:
    """Return the perceptual hash of each image, 64 bits.

    Raises:
        DataError: An image is missing or cannot be decoded.
    """
    import imagehash
    import numpy as np

    hashes = [
        np.packbits(imagehash.phash(read_image(path)).hash.reshape(-1)).view(">u8")[0] for path in paths
    ]
    return np.array(hashes, dtype=np.uint64)


def find_near_images(
    hashes: NDArray[np.uint64], known: NDArray[np.uint64], *, bits: int = IMAGE_BITS
) -> NDArray[np.int64]:
    """Return for each image the index of the nearest known one that differs in at most `bits`, else -1."""
    import numpy as np

    found = np.full(len(hashes), -1, dtype=np.int64)
    if len(known):
        for row, value in enumerate(hashes):
            distances = np.bitwise_count(known ^ value)
            nearest = int(distances.argmin())
            found[row] = nearest if distances[nearest] <= bits else -1
    return found
