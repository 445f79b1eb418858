"""Kill `llava engine generate` at random moments, and check that no answer is paid for twice.

    python scripts/bench/engine_kill_loop.py --kills 100

A server on the loopback answers with 429, 500, cut and half answers, wrong JSON and nonsense by a seeded
schedule, and counts what it charges for. A round's requests are started over and over and killed (SIGKILL);
the last run is left to end. Exit code 1 unless every request has one answer, only answers in flight at a kill
were paid for again, and the ledger holds at least what the server charged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from llava.command import run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))


def main() -> None:
    """Kill as often as asked, then print the outcome."""
    from support.engine_kills import kill_loop

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0, help="no more kills after that")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_loop(
            Path(folder) / "rounds/1",
            kills=flags.kills,
            requests=flags.requests,
            seed=flags.seed,
            minutes=flags.minutes,
        )
    sys.stdout.write(
        f"{report.kills} runs killed, {report.lost} calls in flight at a kill, {report.paid_again} of them"
        f" paid for again; {len(report.faults)} faults; {time.monotonic() - began:.0f} s\n"
    )
    if report.faults:
        sys.exit("\n".join(report.faults))


if __name__ == "__main__":
    run(main)
