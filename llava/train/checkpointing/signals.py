"""Ctrl-C, SIGTERM, Slurm's SIGUSR1, a closed terminal: noted at once, obeyed when the step is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

# A terminal and a launcher may both pass one Ctrl-C on: only later ones are another.
_SAME_S = 1.0


class Signals:
    """Which signal asks this process to leave.

    Attributes:
        caught: The first one's number; 0 while there is none.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._at = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Note signals instead of dying of them. A second Ctrl-C is a KeyboardInterrupt as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python gives signals to the main thread alone
            return
        # Under nohup a run goes on without its terminal.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        before = {
            number: signal.signal(number, self._note) for number in HANDLED_SIGNALS if number not in ignored
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.caught:
            self.caught, self._at = number, now
            if os.environ.get("RANK", "0") == "0":
                # Not by logging: it may be just what was interrupted.
                text = f"\n{signal.Signals(number).name}: saving after this step, then leaving; "
                os.write(2, f"{text}Ctrl-C again leaves at once\n".encode())
        elif number == signal.SIGINT and now - self._at > _SAME_S:
            raise KeyboardInterrupt


def leave_signals_to_parent(prepare: Callable[[int], None], worker: int) -> None:
    """Start a data loader's process that outlasts these signals: its parent needs it to the last step.

    Args:
        prepare: What else is done at its start.
        worker: Its number.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A launcher sends SIGTERM to everyone, and Python ends its processes by it: only the sender tells.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, daemon=True).start()
    prepare(worker)


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
