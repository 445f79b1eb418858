"""The command line of training: flags by group in --help, LLaVA's first, and none abbreviated."""

from __future__ import annotations

import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NoReturn

from transformers import HfArgumentParser

from llava.errors import SettingsError

_WIDTH, _INDENT = 110, 6
_WITHOUT_EFFECT = "Has no effect"


class FlagParser(HfArgumentParser):
    """A parser of dataclasses whose --help has sections, and whose errors are a `SettingsError`."""

    def __init__(self, kinds: Sequence[type], sections: Mapping[str, Sequence[str]]) -> None:
        """Make a parser.

        Args:
            kinds: Dataclasses; each field is a flag.
            sections: The flags that --help explains, by section. Others are only listed.
        """
        super().__init__(kinds, allow_abbrev=False)
        self._sections = sections

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see --help", code="invalid-flags")

    def format_help(self) -> str:
        """Return the sections, one flag after the other, then the names of all other flags."""
        # A flag that is True by default has a second one, --no_NAME.
        flags = {action.dest: action for action in reversed(self._actions) if action.help != SUPPRESS}
        idle = {name for name in flags if str(flags[name].help).startswith(_WITHOUT_EFFECT)}
        lines = [f"usage: {self.prog} --FLAG VALUE ..."]
        explained = {"help"}
        for title, names in self._sections.items():
            shown = [name for name in names if name in flags and name not in idle | explained]
            explained.update(shown)
            lines += ["", f"{title}:", *(line for name in shown for line in _explain(flags[name]))]
        rest = sorted(set(flags) - explained - idle)
        lines += ["", "Other flags of transformers' TrainingArguments, explained in its documentation:"]
        lines += _listed(rest)
        lines += ["", "Accepted for the original's scripts, without effect:", *_listed(sorted(idle))]
        return "\n".join(lines) + "\n"


def _explain(flag: Action) -> Iterator[str]:
    default = flag.default.value if isinstance(flag.default, Enum) else flag.default
    yield f"  --{flag.dest}" + ("" if default is None else f"  (default: {default!s})")
    sentence = " ".join(str(flag.help or "").split()).split(". ")[0]
    indent = " " * _INDENT
    yield from textwrap.wrap(sentence, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _listed(names: Sequence[str]) -> list[str]:
    return textwrap.wrap(", ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="  ")
