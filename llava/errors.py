"""What can be wrong with the user's input. A command prints these on one line and exits with 2."""

from __future__ import annotations


class LlavaError(Exception):
    """Something the user can mend. The message says where, what was found, what was wanted, what to do."""


class DataError(LlavaError):
    """A data file, record or image is not as it must be."""


class CheckpointError(LlavaError):
    """A folder of weights cannot be loaded or written, or does not fit its base."""


class AnswersError(LlavaError):
    """Answers are missing, doubled, or belong to another model, question file or setting."""


class SettingsError(LlavaError):
    """Flags or settings contradict each other or name something that does not exist."""
