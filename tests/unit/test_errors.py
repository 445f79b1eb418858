"""The one-line text of an error, and what survives pickling."""

from __future__ import annotations

import pickle

import pytest

from llava.errors import one_line
from llava.samples import BAD_ID, RecordError
from llava.schema import Sample


@pytest.mark.parametrize(
    ("error", "limit", "text"),
    [
        (OSError("a\n  b\tc "), None, "a b c"),
        (KeyError(), None, "KeyError"),
        (ValueError("x" * 9), 4, "xxxx"),
    ],
)
def test_an_error_becomes_one_line(error: Exception, limit: int | None, text: str) -> None:
    assert one_line(error, limit) == text


def test_a_record_error_survives_pickling() -> None:
    error = RecordError(BAD_ID, "f: record 1: id is [1]", Sample(1, ()))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.kind, str(copy), copy.sample) == ("bad-id", BAD_ID, str(error), error.sample)
