"""Choose the image of each request: any, or one that looks like a bad case's. None is taken twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from llava.errors import DataError
from llava.image_features import STEP, Features, image_state, read_features

FindCopy = Callable[[str], str | None]
"""From an image to the benchmark that has the same picture, or None."""


class ImagePicker:
    """Gives out images, each at most once, and none whose picture a benchmark has.

    Attributes:
        copies: How many images were passed over because a benchmark has their picture, by benchmark.
    """

    def __init__(self, names: Iterable[str], find_copy: FindCopy | None, random: Random) -> None:
        self._find_copy = find_copy
        self._gone: set[str] = set()
        self._shuffled = sorted(names)
        random.shuffle(self._shuffled)
        self.copies: Counter[str] = Counter()

    def deck(self, fits: Callable[[str], bool]) -> Iterable[str]:
        """Return the images that fit, in random order, to be taken from again and again."""
        return iter([name for name in self._shuffled if fits(name)])

    def take(self, names: Iterable[str]) -> str | None:
        """Return the first image that is still free, or None."""
        for name in names:
            if name in self._gone:
                continue
            self._gone.add(name)
            copied = self._find_copy(name) if self._find_copy else None
            if copied is None:
                return name
            self.copies[copied] += 1
        return None


class Neighbours:
    """The images that look most like a benchmark's image, by the cosine of their features."""

    def __init__(self, images: Features, cases: Features, names: Mapping[str, str], most: int) -> None:
        import numpy as np

        self._vectors = np.asarray(images.vectors, dtype=np.float32)
        self._cases = cases
        self._rows = {one.name: row for row, one in enumerate(cases.images)}
        # From the rows to the images that requests may be about.
        self._names = [names.get(one.name) for one in images.images]
        self._most = most
        self._found: dict[str, list[str]] = {}

    def near(self, image: str) -> list[str]:
        """Return the images nearest to a bad case's image, at most `most`.

        Raises:
            DataError: The bad case's image has no features.
        """
        import numpy as np

        if image not in self._rows:
            raise DataError(
                f"{image}: a bad case's image has no features; run `{STEP}` on the benchmark's images, with"
                " paths as in its questions",
                code="missing-features",
            )
        if image not in self._found:
            vector = np.asarray(self._cases.vectors[self._rows[image]], dtype=np.float32)
            order = np.argsort(-(self._vectors @ vector), kind="stable")
            ranked = (name for row in order if (name := self._names[row]))
            self._found[image] = list(islice(ranked, self._most))
        return self._found[image]


def read_neighbours(
    images: Path, cases: Path, folder: Path, names: Mapping[str, str], *, allowed: Container[str], most: int
) -> Neighbours:
    """Read the features of the images and of the benchmark's images.

    Args:
        images: The .npy file of the image folder.
        cases: The .npy file of the benchmark's images.
        folder: The image folder.
        names: The images of requests, by their paths under the folder.
        allowed: The images that requests may be about.
        most: How many images count as near.

    Raises:
        DataError: A file is damaged, is of another tower than the other, or is out of date.
    """
    seen, asked = read_features(images), read_features(cases)
    if seen.tower != asked.tower:
        raise DataError(
            f"{images} is of the tower {seen.tower}, {cases} of {asked.tower}; run `{STEP}` with one tower",
            code="other-tower",
        )
    known = {one.name: one for one in seen.images}
    for path, name in names.items():
        if name in allowed and known.get(path) != image_state(folder, path):
            what = "has changed since" if path in known else "is not in"
            raise DataError(f"{folder / path}: {what} {images}; run `{STEP}` again", code="changed-input")
    return Neighbours(seen, asked, {path: name for path, name in names.items() if name in allowed}, most)


def take_turns(counts: Mapping[str, int]) -> list[str]:
    """Return each type as often as counted, evenly spread: any first part has about the shares of all."""
    places = [((turn + 0.5) / count, name) for name, count in counts.items() for turn in range(count)]
    return [name for _, name in sorted(places)]


def is_near_turn(turn: int, share: float) -> bool:
    """Return whether a type's request of this number, from 0, is about a near image, so that `share` are."""
    return int((turn + 1) * share + 1e-9) > int(turn * share + 1e-9)


def pick_sample(items: Sequence[object], most: int, random: Random) -> list[int]:
    """Return the indices of at most `most` items, picked at random, in the items' order."""
    return sorted(random.sample(range(len(items)), min(most, len(items))))
