"""Expect an error by its stable code, so that its wording may change."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from llava.errors import LlavaError


def raises_code(
    code: str, kind: type[LlavaError] = LlavaError
) -> AbstractContextManager[pytest.ExceptionInfo[LlavaError]]:
    """Expect a `kind` whose code is `code`."""
    return pytest.raises(kind, check=lambda error: error.code == code)
