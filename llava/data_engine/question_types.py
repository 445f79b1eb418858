"""The nine question types (skills) of engine records. To add one, add a row to the table.

Source: SEED-Bench-1's image question types, whose ids are the `qtype` of the published engine records.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skill:
    """One type of question: SEED-Bench's id and name."""

    id: int
    name: str


SKILLS = (
    Skill(1, "Scene Understanding"),
    Skill(2, "Instance Identity"),
    Skill(3, "Instance Attributes"),
    Skill(4, "Instance Location"),
    Skill(5, "Instances Counting"),
    Skill(6, "Spatial Relation"),
    Skill(7, "Instance Interaction"),
    Skill(8, "Visual Reasoning"),
    Skill(9, "Text Understanding"),
)

_BY_KEY = {key: skill for skill in SKILLS for key in (str(skill.id), skill.name.casefold())}


def find_skill(label: object) -> Skill | None:
    """Return the skill of an id (`4`, `"4"`) or a name (any case), or None if there is no such skill."""
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return _BY_KEY.get(str(label).strip().casefold())
