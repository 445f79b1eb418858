"""The command `llava engine report ROUNDS`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava.data_engine.results.report import report_rounds


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` to the sub-commands of `llava engine`."""
    report = commands.add_parser("report", help="what the rounds gained, and what that cost")
    report.add_argument("rounds", type=Path, help="the folder of all rounds")
    report.add_argument(
        "--final", action="store_true", help="look at the frozen part, too: once, when the rounds are over"
    )
    report.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    sys.stdout.write(report_rounds(arguments.rounds, final=arguments.final) + "\n")
