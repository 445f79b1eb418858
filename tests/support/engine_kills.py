"""Kill `generate` at random moments, and compare what the server charged with what the ledger knows."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import openai  # noqa: F401 - loaded once by the fork server instead of by every process

from llava.data_engine.generation.bodies import Sampling
from llava.data_engine.generation.client import Server
from llava.data_engine.generation.generate import RoundBudget, generate_round
from llava.data_engine.generation.ledger import open_ledger
from llava.data_engine.generation.prices import Price, Usage
from llava.files import read_jsonl, write_jsonl
from support.chat_server import ChatServer, Faults, request_rows

PRICE = Price(input=1.0, cached=0.5, output=2.0, batch=0.5, image_tokens=1000, date="today", source="a test")
"""The price of the model "m", whose every answer has the tokens of `chat_server.completion`."""
ANSWER_COST = PRICE.cost(Usage(100, 50))

# Loaded once by the fork server instead of by every process; it does not see the tests' own folder.
SLOW_IMPORTS = ["openai.resources.chat.completions", "aiolimiter", "llava.data_engine.generation.generate"]
KILL_FAULTS = Faults(busy=0.05, error=0.03, cut=0.03, half=0.02, wrong=0.02, page=0.02, nonsense=0.03)


def answer_all(folder: Path, url: str, concurrency: int = 8, rate: float | None = None) -> None:
    """Run `generate` on a round's folder, as the command does."""
    with open_ledger(folder.parent / "ledger.sqlite") as ledger:
        server = Server(url, concurrency=concurrency, rate=rate, timeout=20)
        generate_round(folder, ledger, server, Sampling("m"), RoundBudget(folder.name, PRICE, 100.0))


def start_process(folder: Path, url: str, concurrency: int = 8, rate: float | None = None) -> BaseProcess:
    """Start `answer_all` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    process = context.Process(target=answer_all, args=(folder, url, concurrency, rate), daemon=True)
    process.start()
    return process


@dataclass(frozen=True)
class KillReport:
    """What a kill loop saw; `faults` is empty if the ledger held."""

    kills: int
    lost: int
    paid_again: int
    faults: list[str]


def kill_loop(folder: Path, *, kills: int, requests: int, seed: int, minutes: float = 60.0) -> KillReport:
    """Kill up to `kills` runs on one round, let the last one end, and compare the ledger with the server."""
    chance = random.Random(seed)
    write_jsonl(folder / "requests.jsonl", request_rows(requests))
    done = 0
    deadline = time.monotonic() + 60 * minutes
    with ChatServer(KILL_FAULTS, seed=seed, delay=0.02) as server:
        for _ in range(kills):
            if time.monotonic() > deadline:
                break
            process = start_process(folder, server.url)
            # Moments are counted in calls, so that a slow machine is killed as far in as a fast one.
            target = sum(server.calls.values()) + chance.randint(0, max(2 * requests // kills, 1))
            while process.is_alive() and sum(server.calls.values()) < target:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
            done += process.is_alive()
            process.kill()
            process.join()
        process = start_process(folder, server.url)
        process.join()
    return _compare(folder, server, requests, done, process.exitcode)


def _compare(
    folder: Path, server: ChatServer, requests: int, kills: int, exit_code: int | None
) -> KillReport:
    with open_ledger(folder.parent / "ledger.sqlite") as ledger:
        spent = ledger.spending(folder.name)
    again = sum(count - 1 for count in server.charged.values())
    paid = (server.charged.total() + server.broken.total()) * ANSWER_COST
    answers = [row["id"] for _, row in read_jsonl(folder / "responses.jsonl")]
    checks = {
        f"the last run exited with {exit_code}": exit_code == 0,
        f"{len(answers)} responses to {requests} requests": answers == [f"r{n}" for n in range(requests)],
        f"{again} answers were paid for again, {spent.lost} calls were in flight": again <= spent.lost,
        f"the server charged ${paid:.6f}, the ledger says ${spent.total:.6f}": paid <= spent.total + 1e-9,
        f"the answers cost ${spent.answered:.6f}": abs(spent.answered - requests * ANSWER_COST) < 1e-9,
    }
    return KillReport(kills, spent.lost, again, [text for text, holds in checks.items() if not holds])
