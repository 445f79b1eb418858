"""Run a command: set up logging, print the user's errors on one line, set the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from llava.errors import LlavaError, one_line
from llava.log import setup_logging

# Environment variable: the file where each rank writes its error, for the launcher to print last.
ERROR_FILE = "LLAVA_ERROR_FILE"


def run(main: Callable[[], None]) -> None:
    """Run a command's `main` and exit the process with its code.

    0 when `main` returns, 2 for an error the user can fix (one line on stderr), 130 for Ctrl-C. Any other
    exception is a bug and keeps its traceback; `LLAVA_TRACEBACK=1` shows a traceback for user errors too.
    """
    setup_logging()
    try:
        main()
    except BrokenPipeError:
        # The reader of stdout (`| head`) has exited; redirect stdout so that the exit is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (LlavaError, OSError) as error:
        if os.environ.get("LLAVA_TRACEBACK") == "1":
            raise
        sys.stderr.write(f"error: {_reason(error)}\n")
        if ERROR_FILE in os.environ and "RANK" in os.environ:
            with Path(os.environ[ERROR_FILE]).open("a", encoding="utf-8") as file:
                file.write(f"rank {os.environ['RANK']}: {_reason(error)}\n")
        sys.exit(2)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return one_line(error)
