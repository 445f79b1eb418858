"""The command line of training: LLaVA's --help, and no abbreviated flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from transformers import HfArgumentParser

from llava.errors import SettingsError
from llava.train.flags import format_help


class FlagParser(HfArgumentParser):
    """A parser of dataclasses, whose fields are the flags, and whose errors are a `SettingsError`."""

    def __init__(self, kinds: Sequence[type]) -> None:
        super().__init__(kinds, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see --help", code="invalid-flags")

    def format_help(self) -> str:
        return format_help(self.prog)
