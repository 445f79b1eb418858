"""The prompt templates of all rounds, and the history of their versions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path

from llava.errors import DataError, SettingsError, shown
from llava.files import atomic_write, read_jsonl, read_text, write_jsonl
from llava.schema import JsonObject

PACKAGED = Path(__file__).parent / "templates"
FOLDER, HISTORY, SUFFIX = "templates", "versions.jsonl", ".jinja"
_DIGITS = 12
_FIELDS = {"name": str, "number": int, "text": str, "note": str, "pass_rates": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptVersion:
    """One text that a prompt template had.

    Attributes:
        name: The template's.
        number: From 1.
        text: The whole template.
        parent: The `version` that it was made from; None for the first.
        note: Why it was made.
        pass_rates: By type, {"passed", "of"}, where it was tried.
        kept: False for a candidate that was not accepted; it is no one's parent.
    """

    name: str
    number: int
    text: str
    parent: str | None = None
    note: str = ""
    pass_rates: JsonObject = field(default_factory=dict)
    kept: bool = True

    @property
    def version(self) -> str:
        """The number and the start of the text's sha256, such as "2-0f3a5c7e9b1d"."""
        return f"{self.number}-{hashlib.sha256(self.text.encode()).hexdigest()[:_DIGITS]}"


def template_path(rounds: Path, name: str) -> Path:
    """Return the file of a template, which a person edits."""
    return rounds / FOLDER / (name + SUFFIX)


def copy_templates(rounds: Path) -> None:
    """Copy the package's templates to `rounds`/templates; what is there already stays."""
    for source in sorted(PACKAGED.glob(f"*{SUFFIX}")):
        target = template_path(rounds, source.stem)
        if not target.exists():
            with atomic_write(target) as stream:
                stream.write(read_text(source))


def read_versions(rounds: Path) -> list[PromptVersion]:
    """Return all versions of all templates, oldest first.

    Raises:
        DataError: A line of the history is damaged, or its version is not that of its text.
    """
    path = rounds / FOLDER / HISTORY
    found = []
    for line, row in read_jsonl(path, strict=True) if path.exists() else ():
        for key, kind in _FIELDS.items():
            if not isinstance(row.get(key), kind):
                raise DataError(
                    f"{path}:{line}: {key} is {shown(row.get(key))}, wanted {kind.__name__}",
                    code="bad-version",
                )
        kept = row.get("kept", True) is True
        one = PromptVersion(**{key: row[key] for key in _FIELDS}, parent=row.get("parent"), kept=kept)
        if row.get("version") != one.version:
            raise DataError(
                f"{path}:{line}: version is {shown(row.get('version'))}, but {one.version} by its text",
                code="bad-version",
            )
        found.append(one)
    return found


def write_versions(rounds: Path, versions: Sequence[PromptVersion]) -> None:
    """Write the history, each version with its difference from its parent."""
    texts = {(one.name, one.version): one.text for one in versions}
    write_jsonl(
        rounds / FOLDER / HISTORY,
        [
            {
                "name": one.name,
                "number": one.number,
                "version": one.version,
                "parent": one.parent,
                "kept": one.kept,
                "note": one.note,
                "pass_rates": one.pass_rates,
                "diff": _diff(texts.get((one.name, str(one.parent)), ""), one.text),
                "text": one.text,
            }
            for one in versions
        ],
    )


def current_version(rounds: Path, name: str) -> PromptVersion:
    """Return the version of a template's present text; a text that is new becomes the next version.

    Raises:
        SettingsError: There is no such template.
        DataError: The template or the history cannot be read.
    """
    path = template_path(rounds, name)
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob(f"*{SUFFIX}")))
        raise SettingsError(
            f"{path}: no such template; there are: {there or 'none'}", code="unknown-template"
        )
    text = read_text(path)
    versions = read_versions(rounds)
    own = [one for one in versions if one.name == name]
    if known := next((one for one in own if one.text == text), None):
        return known
    parent = next((one.version for one in reversed(own) if one.kept), None)
    new = PromptVersion(name=name, number=len(own) + 1, text=text, parent=parent)
    write_versions(rounds, [*versions, new])
    return new


def _diff(before: str, after: str) -> str:
    lines = unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), "parent", "this")
    return "".join(lines) if before else ""
