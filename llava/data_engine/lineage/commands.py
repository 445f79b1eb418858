"""The command `llava engine trace ID`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava.data_engine.lineage.trace import trace_record
from llava.errors import DataError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` to the sub-commands of `llava engine`."""
    trace = commands.add_parser("trace", help="where a training record of a round came from")
    trace.add_argument("id", help="its id in the training file, such as engine_mc_0123456789abcdef")
    trace.add_argument(
        "--rounds", type=Path, default=Path("rounds"), help="the folder of all rounds (default: rounds)"
    )
    trace.set_defaults(command=_trace)


def _trace(arguments: argparse.Namespace) -> None:
    found = trace_record(arguments.rounds, arguments.id)
    sys.stdout.write("\n".join(found.lines) + "\n")
    if found.broken:
        raise DataError(
            f"{len(found.broken)} links of the chain are broken; the first: {found.broken[0]}",
            code="broken-link",
        )
