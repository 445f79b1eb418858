"""The command `llava report`: compare scores, or run the sub-command that is named."""

from __future__ import annotations

import sys

from llava import command
from llava.report import badcases, comparison, flips, results, training

COMMANDS = {
    "results": results.main,
    "compare": flips.main,
    "training": training.main,
    "badcases": badcases.main,
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        comparison.main()
        return
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    COMMANDS[name]()


if __name__ == "__main__":
    command.run(main)
