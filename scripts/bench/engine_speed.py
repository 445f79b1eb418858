"""Ask a rate-limited server for many answers, and compare the time with what its limit allows.

    python scripts/bench/engine_speed.py

A server on the loopback takes `--rate` calls a second, refuses more with 429, and fails one call in twenty in
other ways. Exit code 1 if `llava engine generate`, in a process of its own, takes over 20 % longer than its
calls take at that rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from llava.command import run
from llava.files import write_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))


def main() -> None:
    """Answer the requests once, then print the time."""
    from support.chat_server import ChatServer, Faults, request_rows
    from support.engine_kills import start_process

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=25.0, help="calls a second")
    parser.add_argument("--concurrency", type=int, default=64)
    flags = parser.parse_args()
    faults = Faults(busy=0.01, error=0.01, cut=0.01, half=0.01, wrong=0.005, nonsense=0.005)
    with (
        tempfile.TemporaryDirectory() as folder,
        ChatServer(faults, delay=0.3, rate=flags.rate, retry_after="1") as server,
    ):
        round_folder = Path(folder) / "rounds/1"
        write_jsonl(round_folder / "requests.jsonl", request_rows(flags.requests))
        began = time.monotonic()
        process = start_process(round_folder, server.url, concurrency=flags.concurrency, rate=60 * flags.rate)
        process.join()
        took = time.monotonic() - began
    allowed = (sum(server.calls.values()) - server.calls["http-429"]) / flags.rate
    sys.stdout.write(
        f"{flags.requests} requests, {sum(server.calls.values())} calls in {took:.1f} s; the server's limit"
        f" allows them in {allowed:.1f} s: {took / allowed - 1:+.1%}\n"
    )
    if process.exitcode or took > 1.2 * allowed:
        sys.exit("the run failed" if process.exitcode else "over 20 % longer than the limit allows")


if __name__ == "__main__":
    run(main)
