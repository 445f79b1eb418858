"""The architecture page (llava/README.md) names files, functions and packages that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "llava/README.md").read_text(encoding="utf-8")
NAMES = re.findall(r"`((?:llava|scripts)/[\w./]+\.(?:py|sh)):([\w.]+)`", TEXT)
WALKS = (
    "A sample to its loss",
    "A question to its score",
    "An engine record to a training row",
    "A flag to where it acts",
)


def section(title: str) -> str:
    """Return the text under a heading, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", TEXT, re.S | re.M)
    assert found, f"llava/README.md has no section {title!r}"
    return found[1]


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the functions, classes, methods and constants that a body defines."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMES)))
def test_every_name_of_a_walk_exists(file: str, name: str) -> None:
    text = (REPO / file).read_text(encoding="utf-8")
    if file.endswith(".sh"):
        assert re.search(rf"^{name}\(\) ", text, re.M), f"{file} has no function {name}"
    else:
        assert name in set(definitions(ast.parse(text).body)), f"{file} does not define {name}"


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_is_a_list_of_names(walk: str) -> None:
    steps = re.findall(r"^\d+\. .*", section(walk), re.M)
    assert len(steps) >= 5
    for step in steps:
        assert re.search(r"`(?:llava|scripts)/[\w./]+:[\w.]+`", step), f"{walk}: no file:name in {step!r}"


@pytest.mark.parametrize(("title", "column"), [("Layers", 1), ("Packages", 0)])
def test_every_package_is_on_the_map(title: str, column: int) -> None:
    there = {path.stem for path in (REPO / "llava").iterdir() if path.suffix == ".py" or path.is_dir()}
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[column])}
    assert named == {name for name in there if not name.startswith("__")}


def test_the_glossary_gives_each_word_one_meaning() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", section("Glossary"), re.M)[1:]
    words = [word.strip() for row in rows for word in row.split(",")]
    assert len(words) > 25
    assert len(words) == len(set(words))
