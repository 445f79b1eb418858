"""The nine question types (skills) of engine records. To add one, add a row to the table.

Source: SEED-Bench-1's image question types, whose ids are the `qtype` of the published engine records. The
definitions are in our own words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skill:
    """One type of question: SEED-Bench's id and name, and what such a question asks for."""

    id: int
    name: str
    definition: str


SKILLS = (
    Skill(
        1,
        "Scene Understanding",
        "what the image shows as a whole, such as the place, the occasion, the weather or the time of "
        "day; many parts of the image have to be seen together.",
    ),
    Skill(
        2,
        "Instance Identity",
        "what a certain thing or who a certain person is: its kind, or whether it is there at all; "
        "the question points at it by its place or looks.",
    ),
    Skill(
        3,
        "Instance Attributes",
        "a property of a certain thing or person, such as colour, shape, material, pattern, clothing, "
        "state or expression.",
    ),
    Skill(
        4,
        "Instance Location",
        "where in the image or on what a certain thing or person is; the answer is a place.",
    ),
    Skill(
        5,
        "Instances Counting",
        "how many of a certain kind there are; all of them can be seen and told apart, and the answer "
        "is a number.",
    ),
    Skill(
        6,
        "Spatial Relation",
        "how two things lie to one another, such as left of, above, behind, inside or between; the "
        "question names both.",
    ),
    Skill(
        7,
        "Instance Interaction",
        "what two or more people, animals or things do to or with one another, such as holding, "
        "riding or looking at.",
    ),
    Skill(
        8,
        "Visual Reasoning",
        "something that is not shown itself but follows from what is shown: a cause, a purpose, a "
        "relation between people, or what will happen next.",
    ),
    Skill(
        9,
        "Text Understanding",
        "what is written in the image, or what its writing means, such as a sign, a label, a title or "
        "a number.",
    ),
)

_BY_KEY = {key: skill for skill in SKILLS for key in (str(skill.id), skill.name.casefold())}


def find_skill(label: object) -> Skill | None:
    """Return the skill of an id (`4`, `"4"`) or a name (any case), or None if there is no such skill."""
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return _BY_KEY.get(str(label).strip().casefold())
