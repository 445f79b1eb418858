"""A stand-in for python in which every question is answered "A", so that `llava eval` needs no model."""

from __future__ import annotations

import sys
from pathlib import Path

# Answering with --chunk-idx 1 fails if CANNED_FAILS is set.
_PROGRAM = """
import os, runpy, sys, types
from llava.infer.digests import look_at
from llava.infer.jobs import run
from llava.infer.engine.requests import ImageFile, Reply

load = types.SimpleNamespace(
    resolve_device=lambda choice, local_rank: choice, find_changed_classes=lambda: None
)
sys.modules["llava.infer.engine.load"] = load
run.fingerprint_model = lambda path, base: {"weights": path, "base": base}

def reply(ask):
    files = [ask.image.path] if isinstance(ask.image, ImageFile) else []
    return Reply("A", images=tuple(map(look_at, files)))

run._open_engine = lambda job, loader: None
run._replies = lambda job, asks, positions, *rest: ((place, reply(asks[place])) for place in positions)
sys.argv = ["llava eval", *sys.argv[3:]]
if "CANNED_FAILS" in os.environ and sys.argv[-1] == "1":
    sys.exit(3)
runpy.run_module("llava.eval.__main__", run_name="__main__")
"""


def canned_python(folder: Path) -> Path:
    """Write the stand-in to `folder`; commands other than `python -m llava.eval` are real."""
    (folder / "canned.py").write_text(_PROGRAM)
    python = folder / "python"
    canned = f'exec {sys.executable} {folder / "canned.py"} "$@"'
    python.write_text(f'#!/bin/sh\n[ "$2" = llava.eval ] && {canned}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python
