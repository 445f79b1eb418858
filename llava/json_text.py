"""Parse JSON and say where the fault is, also where Python's reader stops without a place.

An object that has a key twice is refused: JSON readers disagree on which of the two values counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from llava.schema import JsonObject

ObjectHook = Callable[[JsonObject], object]
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
# Python's reader stops at about a thousand levels, depending on its caller.
DEEPEST = 500
_TOKEN = re.compile(
    r"""(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")(?P<colon>\s*:)?
    |(?P<bracket>[\[\]{}])
    |(?P<number>-?\d{4301,})(?![\d.eE])
    |(?P<constant>NaN|-?Infinity)""",
    re.DOTALL | re.VERBOSE,
)
_HALF_ESCAPE = re.compile(
    r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)


class JsonFaultError(ValueError):
    """A text is not JSON, or is refused: at the character `offset`, with the `code` of a DataError."""

    def __init__(self, message: str, offset: int, code: str = "not-json") -> None:
        super().__init__(message)
        self.offset = offset
        self.code = code


def parse_json(text: str, *, object_hook: ObjectHook | None = None, strict: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        object_hook: What to make of each object.
        strict: Also refuse what Python reads although no other reader does: NaN and Infinity, and half a
            character (a lone surrogate).

    Raises:
        JsonFaultError: It is not JSON, is too deep or has too long a number for Python, or an object has a
            key twice.
    """

    def build(pairs: list[tuple[str, object]]) -> object:
        return object_hook(build_object(pairs)) if object_hook else build_object(pairs)

    constant = _refuse_constant if strict else None
    try:
        value = json.loads(text, object_pairs_hook=build, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise JsonFaultError(f"not valid JSON (column {error.colno}: {error.msg})", error.pos) from error
    except (ValueError, RecursionError) as error:
        raise locate_fault(text, strict=strict) or JsonFaultError(f"not valid JSON ({error})", 0) from error
    may_have_halves = strict and ("\\ud" in text or "\\uD" in text) and _HALF_ESCAPE.search(text)
    if may_have_halves and (fault := locate_fault(text, strict=True)):
        raise fault
    return value


def build_object(pairs: list[tuple[str, object]]) -> JsonObject:
    """Return the object with these keys and values.

    Raises:
        ValueError: A key comes twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def locate_fault(text: str, *, strict: bool = False) -> JsonFaultError | None:
    """Return the first thing in well-formed JSON that is refused, None if there is none."""
    open_values: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        at = token.start()
        if token["bracket"] in ("]", "}"):
            open_values.pop()
        elif token["bracket"]:
            open_values.append(set())
            if len(open_values) > DEEPEST:
                return JsonFaultError(f"nested more than {DEEPEST} levels deep", at)
        elif token["number"]:
            return JsonFaultError(f"a number of {len(token[0])} digits", at)
        elif token["constant"]:
            if strict:
                return JsonFaultError(f"found {token[0]}, which is no JSON; write null, or leave it out", at)
        else:
            string = json.loads(token["string"])
            if strict and HALF_CHARACTER.search(string):
                return JsonFaultError(
                    f"{string!r:.60} holds half a character (a lone surrogate)", at, "lone-surrogate"
                )
            if token["colon"]:
                if string in open_values[-1]:
                    message = f"the key {string!r} comes twice in one object; remove one of them"
                    return JsonFaultError(message, at, "repeated-key")
                open_values[-1].add(string)
    return None
