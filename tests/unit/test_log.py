"""What a log without a terminal looks like."""

from __future__ import annotations

import logging
import warnings

import pytest

from llava import log
from llava.log import progress, progress_bar, setup_logging


def test_a_bar_and_log_messages_are_lines_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_logging()
    for _ in progress(range(2), name="over within a minute"):
        pass
    monkeypatch.setattr(log, "ELSEWHERE_S", 0.0)
    for item in progress(range(2), name="shard 0"):
        logging.getLogger("llava.test").info("item %d", item)
    with progress_bar(name="indexing", total=9) as bar:
        bar.update(9)
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in lines if " INFO " in line] == ["INFO item 0", "INFO item 1"]
    assert all(line.startswith(("shard 0: ", "indexing: ")) or " INFO " in line[:15] for line in lines)
    assert any(line.startswith("shard 0: 100%") for line in lines)
    assert not any("\r" in line for line in lines)


def test_warnings_of_pillow_are_hidden_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        setup_logging()
        for module in ("PIL.TiffImagePlugin", "elsewhere"):
            warnings.warn_explicit("odd", UserWarning, f"{module}.py", 1, module=module)
    assert [warning.filename for warning in seen] == ["elsewhere.py"]
