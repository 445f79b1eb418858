"""COMMAND: `llava merge` under the original's path."""

from __future__ import annotations

from llava.command import run
from llava.exchange.merge import main

if __name__ == "__main__":
    run(main)
