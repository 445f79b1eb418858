"""Start Python for scripts in one second instead of ten: forked from a process that has the libraries.

`warm_python()` is a program to pass as PYTHON. It runs `-m MODULE ...`, `-c CODE ...` and `FILE.py ...` in
such a fork, and all else in a new Python. With TEST_COLD=1, as in `bash scripts/test.sh all`, every Python is
a new one.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

_FOLDER = "TEST_WARM_PYTHON"
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@functools.cache
def warm_python() -> str:
    """Return the program; its server is shared by all workers of a test run, and ends with the run."""
    if os.environ.get("TEST_COLD"):
        return sys.executable
    folder = Path(os.environ.get(_FOLDER) or start_server())
    return str(folder / "python")


def start_server() -> str:
    """Start a server that ends with this process, and return the folder of its program.

    Processes that are started from now on share it. It imports the libraries when it is first used.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    subprocess.Popen(
        [sys.executable, __file__, "serve", str(listener.fileno())],
        stdin=subprocess.PIPE,  # closed when this process ends, however it does
        stdout=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    program = folder / "python"
    command = f"{sys.executable} -S {__file__} run {folder / 'socket'}"
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    os.environ[_FOLDER] = str(folder)
    return str(folder)


def run(address: str, arguments: list[str]) -> NoReturn:
    """Have the server run a command with this process's streams, folder, environment and signals."""
    words = arguments[1:] if arguments[0] == "-u" else arguments
    if words[0] not in ("-m", "-c") and not words[0].endswith(".py"):
        os.execv(sys.executable, [sys.executable, *arguments])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    ignored = [number for number in _FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    request: dict[str, Any] = {"words": words, "folder": str(Path.cwd())}
    request |= {"environment": dict(os.environ), "ignored": ignored}
    socket.send_fds(connection, [b"\n"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    for number in set(_FORWARDED) - set(ignored):
        signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
    code = os.waitstatus_to_exitcode(int(connection.recv(100)))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(listener: socket.socket) -> list[str]:
    """Fork for every connection until stdin is closed; return, in the forks, the command to run."""
    if 0 in select.select([listener.fileno(), 0], [], [])[0]:
        os._exit(0)
    import deepspeed  # noqa: F401

    import llava.infer.answering
    import llava.train.train  # noqa: F401

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks leave nothing to wait for
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if 0 in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> list[str]:
    """Read a request and fork its command. Pass signals on, also the client's death; report its end."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile() as lines:
        request = json.loads(lines.readline())
    worker = os.fork()
    if worker == 0:
        connection.close()
        _become(request, streams)
        return list(request["words"])
    for stream in (0, *streams):
        os.close(stream)
    end = os.pidfd_open(worker)
    while True:
        ready, _, _ = select.select([connection.fileno(), end], [], [])
        if end in ready:
            connection.sendall(str(os.waitpid(worker, 0)[1]).encode())
            os._exit(0)
        numbers = connection.recv(100)
        for number in numbers or [signal.SIGKILL]:
            os.kill(worker, number)
        if not numbers:
            os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    before = os.environ.get("PYTHONPATH", "").split(":")
    os.environ.clear()
    os.environ.update(request["environment"])
    added = [name for name in os.environ.get("PYTHONPATH", "").split(":") if name]
    sys.path[:] = [*added, *(name for name in sys.path[1:] if name not in before)]
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)


def _execute(words: list[str]) -> None:
    """Run a module, code or file as `python` does."""
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3:])
    _execute(serve(socket.socket(fileno=int(sys.argv[2]))))
