"""Ctrl-C, SIGTERM, Slurm's SIGUSR1, a closed terminal: recorded at once, handled once the step is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def available(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals of these names; Windows lacks some."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


HANDLED_SIGNALS = available("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")

# A terminal and a launcher may both deliver one Ctrl-C, so a repeat within this time is the same one.
_SAME_SIGNAL_S = 1.0


class Signals:
    """The signal that asks this process to stop.

    Attributes:
        caught: Its number; 0 while there is none.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._at = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Record signals instead of dying of them. A second Ctrl-C raises KeyboardInterrupt as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread only
            return
        # Under nohup a run continues without its terminal.
        ignored = {each for each in available("SIGHUP") if signal.getsignal(each) is signal.SIG_IGN}
        before = {
            number: signal.signal(number, self._record) for number in HANDLED_SIGNALS if number not in ignored
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.caught:
            self.caught, self._at = number, now
            if os.environ.get("RANK", "0") == "0":
                # Not by logging, which may be what the signal interrupted.
                text = f"\n{signal.Signals(number).name}: saving after this step, then leaving; "
                os.write(2, f"{text}Ctrl-C again leaves at once\n".encode())
        elif number == signal.SIGINT and now - self._at > _SAME_SIGNAL_S:
            raise KeyboardInterrupt


def leave_signals_to_parent(prepare: Callable[[int], None], worker: int) -> None:
    """Start a data-loader worker that ignores these signals: the trainer needs it until the step is saved.

    Without `sigwaitinfo` (macOS, Windows), SIGTERM ends a worker whoever sent it.

    Args:
        prepare: Called with the worker's number.
        worker: The worker's number.
    """
    for number in available("SIGINT", "SIGUSR1", "SIGHUP"):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # A launcher sends SIGTERM to all, and the trainer ends its workers by it: the sender decides.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_for_parent, daemon=True).start()
    prepare(worker)


def _exit_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
