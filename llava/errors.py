"""What can be wrong with the user's input. A command prints these on one line and exits with 2."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong = 2, 60, 60


class LlavaError(Exception):
    """An error that the user can fix. The message says where, what was found, what was wanted, what to do.

    Attributes:
        code: A short, stable name of what went wrong ("missing-answers"). Programs and tests match on it,
            so that the wording can improve. It survives pickling, as from a data loader's worker.
    """

    code = "unspecified"

    def __init__(self, *args: object, code: str | None = None) -> None:
        super().__init__(*args)
        if code is not None:
            self.code = code


class DataError(LlavaError):
    """A data file, record or image is missing or invalid."""


class CheckpointError(LlavaError):
    """A folder of weights cannot be loaded or written, or does not fit its base."""


class AnswersError(LlavaError):
    """Answers are missing, doubled, or belong to another model, question file or setting."""


class SettingsError(LlavaError):
    """Flags or settings contradict each other or name something that does not exist."""


def one_line(error: BaseException, limit: int | None = None) -> str:
    """Return an error's text on one line, cut to `limit` characters, or its type's name if it has no text."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


def shown(value: object) -> str:
    """Return any value as it stands in a message: on one line, and cut short however long or deep it is."""
    return " ".join(_SHORT.repr(value).split())
