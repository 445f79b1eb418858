"""Fill a prompt template in. What comes from a file or a model is written as JSON and stays data.

A template runs in Jinja's sandbox. `{{ ... }}` writes a text of ours (`OwnText`) as it is and every other
value as JSON on one line, so that no question, caption or answer can end its quotes. In a text that a prompt
would obey, such as "### USER:", all marks and spaces are written as escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from llava.data_engine.cleaning.rules import find_hostile_text
from llava.errors import DataError, one_line, shown

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.sandbox import SandboxedEnvironment

SYSTEM, USER = "system", "user"
SLOTS = frozenset(
    (
        "type",
        "definition",
        "cases",
        "questions",
        "attached",
        "regions",
        "objects",
        "captions",
        "texts",
        "scene",
    )
)
"""What a template may name; README.md beside this file explains each."""
_NEEDS_LOOK = re.compile(r'["\\]|[^ -~]')
_MARK = re.compile(r"[\W_]")


class OwnText(str):
    """A text of this package or of a person who steers it: a template writes it as it is."""


def quote_data(value: object) -> str:
    """Return a value as JSON on one line, in which no text can be read as a prompt's marker.

    The JSON has the value's exact meaning; letters of all scripts stay readable.
    """
    if isinstance(value, str):
        hostile = find_hostile_text(value)
        text = _MARK.sub(_escape, value) if hostile else _NEEDS_LOOK.sub(_escape_if_needed, value)
        return f'"{text}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quote_data(str(key))}: {quote_data(value[key])}" for key in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(quote_data, value)) + "]"
    return json.dumps(value)


def _escape_if_needed(found: re.Match[str]) -> str:
    character = found[0]
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    return f"\\u{ord(character):04x}" if character.isascii() else json.dumps(character)[1:-1]


class PromptTemplate:
    """A template, checked and ready to be filled in.

    Raises:
        DataError: Its text is no template, lacks a block, or names an unknown slot; with the line.
    """

    def __init__(self, path: Path, text: str) -> None:
        from jinja2 import TemplateSyntaxError

        self._path = path
        self._environment = _sandbox()
        try:
            tree = self._environment.parse(text, filename=str(path))
            self._require_known(tree)
            code = self._environment.compile(tree, filename=str(path))
        except TemplateSyntaxError as error:
            raise self._fault(error.lineno, error) from error
        self._template = self._environment.template_class.from_code(
            self._environment, code, self._environment.make_globals(None)
        )
        if missing := [name for name in (SYSTEM, USER) if name not in self._template.blocks]:
            raise DataError(
                f"{path}: lacks {{% block {missing[0]} %}}; wanted the blocks {SYSTEM} and {USER}",
                code="bad-template",
            )

    def fill(self, slots: Mapping[str, object]) -> tuple[str, str]:
        """Return the text of the system's message and of the user's.

        Raises:
            DataError: The template asks a value for what it does not have; the message gives the line.
        """
        found = []
        for name in (SYSTEM, USER):
            try:
                context = self._template.new_context(dict(slots))
                found.append("".join(self._template.blocks[name](context)).strip())
            except Exception as error:  # a template can do to a value whatever Python can
                raise self._fault(_line_of(error.__traceback__, self._template), error) from error
        return found[0], found[1]

    def _require_known(self, tree: nodes.Template) -> None:
        from jinja2 import meta, nodes

        unknown = meta.find_undeclared_variables(tree) - SLOTS - self._environment.globals.keys()
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                raise DataError(
                    f"{self._path}:{node.lineno}: unknown slot {shown(node.name)}; there are:"
                    f" {', '.join(sorted(SLOTS))}",
                    code="unknown-slot",
                )

    def _fault(self, line: int, error: Exception) -> DataError:
        return DataError(
            f"{self._path}:{line}: {one_line(error, 200)}; mend the template", code="bad-template"
        )


def _sandbox() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined, Undefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def write(value: object) -> object:
        # An undefined value raises when it is written.
        return value if isinstance(value, OwnText | Undefined) else quote_data(value)

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, finalize=write, trim_blocks=True, lstrip_blocks=True
    )


def _line_of(trace: TracebackType | None, template: Template) -> int:
    """Return the template's line that an error came from."""
    line = 0
    while trace:
        if trace.tb_frame.f_globals.get("__jinja_template__") is template:
            line = trace.tb_lineno
        trace = trace.tb_next
    return template.get_corresponding_lineno(line)
