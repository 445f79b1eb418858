"""Questions about a scene, in SEED-Bench's nine types, each with four options of which one is right.

Answers and letters are drawn so that neither has a favourite, and wrong options come from the same image
first: a model that only notices what is present, or that reads only the text, stays near one in four.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .scene import COLOURS, ITEMS, PLACES, POSITIONS, SHAPES, WORDS, Scene, Thing

LETTERS = "ABCD"
TYPES = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instance Attributes": 3,
    "Instance Location": 4,
    "Instances Counting": 5,
    "Spatial Relation": 6,
    "Instance Interaction": 7,
    "Visual Reasoning": 8,
    "Text Understanding": 9,
}
_PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_SIDES = ("left", "right", "above", "below")
_COUNTS = ("1", "2", "3", "4")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question before its options are laid out: the right answer, and wrong ones, the likeliest first."""

    text: str
    short: str
    sentence: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of one type; `letter` names the right one of the four options."""

    type_id: int
    text: str
    short: str
    sentence: str
    options: tuple[str, ...]
    letter: str


@dataclass(slots=True)
class Asker:
    """Draws questions and keeps answers and letters even over all it has drawn.

    One per split: what it draws depends on its seed and on what it was asked before.
    """

    seed: int
    _answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    _letters: Counter[tuple[int, str]] = field(default_factory=Counter)
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"questions {self.seed}")

    def ask(self, scene: Scene, type_id: int) -> Question:
        """A question of the type about the scene, whose answer has been the rarest so far."""
        candidates = list(candidates_of(scene, type_id))
        self._rng.shuffle(candidates)
        chosen = min(candidates, key=lambda asked: self._answers[type_id, asked.short])
        letters = list(LETTERS)
        self._rng.shuffle(letters)
        letter = min(letters, key=lambda name: self._letters[type_id, name])
        self._answers[type_id, chosen.short] += 1
        self._letters[type_id, letter] += 1
        options = list(chosen.wrong[:3])
        self._rng.shuffle(options)
        options.insert(LETTERS.index(letter), chosen.short)
        return Question(type_id, chosen.text, chosen.short, chosen.sentence, tuple(options), letter)


def is_askable(scene: Scene) -> bool:
    """Whether every type has a question about this scene."""
    return all(any(True for _ in candidates_of(scene, type_id)) for type_id in TYPES.values())


def candidates_of(scene: Scene, type_id: int) -> Iterator[Asked]:
    """Every question of the type that this scene answers without doubt."""
    if type_id == 1:
        for text in ("What kind of place is this?", "Which place does the image show?"):
            yield Asked(
                text, scene.place, f"This is a {scene.place}.", _wrong(scene, scene.place, PLACES, ())
            )
    elif type_id == 5:
        yield from _counting(scene)
    elif type_id == 6:
        yield from _spatial(scene)
    elif type_id == 8:
        yield from _most_common(scene)
    elif type_id == 9:
        for text in ("What word is on the sign?", "What does the sign say?"):
            yield Asked(
                text, scene.word, f"The sign says {scene.word}.", _wrong(scene, scene.word, WORDS, ())
            )
    else:
        for name, thing in _named(scene):
            yield from _about(scene, type_id, name, thing)


def _named(scene: Scene) -> Iterator[tuple[str, Thing]]:
    """Each object that its shape, or its colour, alone tells from the rest, with that name."""
    shapes = Counter(thing.shape for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    for thing in scene.things:
        if shapes[thing.shape] == 1:
            yield thing.shape, thing
        if colours[thing.colour] == 1:
            yield f"{thing.colour} object", thing


def _about(scene: Scene, type_id: int, name: str, thing: Thing) -> Iterator[Asked]:
    """Identity (2), attributes (3), location (4) and interaction (7): one fact about one named object."""
    others = [other for other in scene.things if other is not thing]
    if type_id == 2 and name != thing.shape:
        wrong = _wrong(scene, thing.shape, SHAPES, [other.shape for other in others])
        for text in (f"What is the {name}?", f"What shape is the {name}?"):
            yield Asked(text, thing.shape, f"The {name} is a {thing.shape}.", wrong)
    elif type_id == 3 and name == thing.shape:
        wrong = _wrong(scene, thing.colour, COLOURS, [other.colour for other in others])
        for text in (f"What is the colour of the {name}?", f"What colour is the {name}?"):
            yield Asked(text, thing.colour, f"The {name} is {thing.colour}.", wrong)
    elif type_id == 4:
        where = POSITIONS[thing.cell]
        wrong = _wrong(scene, where, POSITIONS, [POSITIONS[other.cell] for other in others])
        for text in (f"Where is the {name}?", f"In which part of the image is the {name}?"):
            yield Asked(text, where, f"The {name} is at the {where}.", wrong)
    elif type_id == 7:
        wrong = _wrong(scene, thing.item, ITEMS, [other.item for other in others])
        for text in (f"What is the {name} holding?", f"What does the {name} hold?"):
            yield Asked(text, thing.item, f"The {name} is holding a {thing.item}.", wrong)


def _counting(scene: Scene) -> Iterator[Asked]:
    counts = Counter(_PLURALS[thing.shape] for thing in scene.things)
    counts.update(f"{thing.colour} objects" for thing in scene.things)
    for name, count in counts.items():
        if count <= len(_COUNTS):
            short = str(count)
            wrong = _wrong(scene, short, _COUNTS, ())
            sentence = f"There are {short} {name}." if count > 1 else f"There is {short} of the {name}."
            for text in (f"How many {name} are there?", f"How many {name} are in the image?"):
                yield Asked(text, short, sentence, wrong)


def _spatial(scene: Scene) -> Iterator[Asked]:
    """Pairs of named objects in one row or one column."""
    named = list(_named(scene))
    for name, thing in named:
        for other_name, other in named:
            if thing is other or (thing.row != other.row and thing.column != other.column):
                continue
            if thing.row == other.row:
                side = "left" if thing.column < other.column else "right"
            else:
                side = "above" if thing.row < other.row else "below"
            wrong = _wrong(scene, side, _SIDES, ())
            for text in (f"On which side of the {other_name} is the {name}?",):
                yield Asked(text, side, f"The {name} is on the side {side} of the {other_name}.", wrong)


def _most_common(scene: Scene) -> Iterator[Asked]:
    for noun, names, values in (
        ("shape", SHAPES, [thing.shape for thing in scene.things]),
        ("colour", COLOURS, [thing.colour for thing in scene.things]),
    ):
        ranked = Counter(values).most_common()
        if len(ranked) > 1 and ranked[0][1] > ranked[1][1]:
            most = ranked[0][0]
            wrong = _wrong(scene, most, names, values)
            for text in (f"Which {noun} is the most common?", f"Which {noun} appears most often?"):
                yield Asked(text, most, f"The most common {noun} is {most}.", wrong)


def _wrong(
    scene: Scene, right: str, pool: tuple[str, ...], present: list[str] | tuple[()]
) -> tuple[str, ...]:
    """The pool without the right answer, in an order of the scene's own, what is in the image first."""
    rng = random.Random(f"wrong {scene.seed} {right}")
    rest = [value for value in pool if value != right]
    rng.shuffle(rest)
    return tuple(sorted(rest, key=lambda value: value not in present))
