"""The package can be imported where Python has fewer signals and modules: macOS and Windows."""

from __future__ import annotations

import ast
import enum
import importlib.util
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ONLY_ON_UNIX = {"fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty"}
# Signals and functions of `signal` that Windows or macOS lacks.
LACKING = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGKILL", "sigwaitinfo", "pthread_sigmask")


def at_import(tree: ast.AST) -> list[ast.AST]:
    """Return the nodes of a module that run when it is imported."""
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef):
            nodes += [child, *at_import(child)]
    return nodes


def test_nothing_that_only_unix_has_is_needed_to_import_a_module(repo: Path) -> None:
    for path in sorted((repo / "llava").rglob("*.py")):
        for node in at_import(ast.parse(path.read_text(encoding="utf-8"))):
            imported = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
            assert not imported & ONLY_ON_UNIX, path
            assert not (isinstance(node, ast.Attribute) and node.attr in LACKING), path


def load(path: Path) -> ModuleType:
    """Execute a module's file again, without replacing the module."""
    spec = importlib.util.spec_from_file_location(f"fresh_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_handles_the_signals_that_there_are(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: each.value for name, each in signal.Signals.__members__.items() if name not in LACKING}
    fewer: Any = enum.IntEnum("Signals", kept)  # type: ignore[misc]  # mypy wants literals
    monkeypatch.setattr(signal, "Signals", fewer)
    for name in LACKING:
        monkeypatch.delattr(signal, name)
    module = load(repo / "llava/train/checkpointing/signals.py")
    assert [each.name for each in module.HANDLED_SIGNALS] == ["SIGINT", "SIGTERM"]
    with module.Signals().handled():
        pass
    ignored: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.append(number))
    prepared: list[int] = []
    module.leave_signals_to_parent(prepared.append, 3)
    assert (prepared, ignored) == ([3], [signal.SIGINT])
