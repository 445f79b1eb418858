"""The command `llava engine generate ROUND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.data_engine.generation import batch_files
from llava.data_engine.generation.bodies import Sampling
from llava.data_engine.generation.client import (
    KEY_VARIABLE,
    MODEL_VARIABLE,
    URL_VARIABLE,
    Server,
    key_from_environment,
)
from llava.data_engine.generation.generate import (
    PlannedCall,
    RoundBudget,
    RoundOutcome,
    RoundRun,
    describe_failures,
    generate_round,
    plan_requests,
    read_round_requests,
    require_money,
    write_responses,
)
from llava.data_engine.generation.ledger import Ledger, open_ledger
from llava.data_engine.generation.prices import read_price
from llava.data_engine.generation.ray_calls import ask_by_ray
from llava.data_engine.loop.round import LEDGER, REQUESTS, RESPONSES
from llava.errors import SettingsError
from llava.schema import JsonObject

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_BATCH = "batch"


def add_commands(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `generate` to the sub-commands of `llava engine`."""
    parser = commands.add_parser(
        "generate",
        help="a round's requests -> responses, by any OpenAI-compatible server",
        description=f"Ask a server for the answers to ROUND/{REQUESTS} and write ROUND/{RESPONSES}. The key"
        f" is read from {KEY_VARIABLE} only.",
    )
    add = parser.add_argument
    add("round", type=Path, metavar="ROUND", help="the round's folder, as rounds/1")
    add("--image-root", type=Path, default=Path(), help="the folder that image paths start from (default: .)")
    add("--estimate", action="store_true", help="say what it would cost, and stop")
    add_provider_flags(parser)
    batch = parser.add_argument_group("batch files").add_argument
    batch(
        "--batch",
        choices=("write", "read", "ray"),
        help="write files for a batch service, read its answers, or have Ray's workers ask the server",
    )
    batch("--workers", type=int, default=1, help="with --batch ray: how many of Ray's (default %(default)s)")
    batch("--results", type=Path, nargs="+", help="with --batch read: the files of the service")
    batch("--shard-lines", type=int, default=batch_files.MAX_LINES, help="of a file (default %(default)s)")
    batch("--shard-bytes", type=int, default=batch_files.MAX_BYTES, help="of a file (default %(default)s)")
    parser.set_defaults(command=_generate)


def add_provider_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that asks a server: which, how, and for how much."""
    server = parser.add_argument_group("server")
    server.add_argument("--model", help=f"its name on the server (default: {MODEL_VARIABLE})")
    server.add_argument("--text-only", action="store_true", help="send the texts without the images")
    server.add_argument("--plain", action="store_true", help="ask for no structured output")
    add_server_flags(server)
    _add_sampling(parser.add_argument_group("sampling"))
    add_money_flags(parser.add_argument_group("money"), work="this round", folder="the round's folder")


def add_money_flags(group: argparse._ArgumentGroup, *, work: str, folder: str) -> None:
    """Add the flags that say what `work` may cost; its ledger is beside `folder` by default."""
    add = group.add_argument
    add("--prices", type=Path, help="a TOML file with the model's price")
    add("--budget", type=float, metavar="DOLLARS", help=f"the most that all runs of {work} may cost")
    add("--ledger", type=Path, help=f"of calls and money (default: {LEDGER} beside {folder})")


def add_server_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say which server is asked, and how hard; `read_server` reads them."""
    usual = Server("http://")
    add = group.add_argument
    add("--base-url", help=f"of the server (default: {URL_VARIABLE})")
    add("--concurrency", type=int, default=usual.concurrency, help="calls at a time (default %(default)s)")
    add("--rate", type=float, help="the most calls a minute (default: no limit)")
    add("--timeout", type=float, default=usual.timeout, help="seconds for one attempt (default %(default)s)")
    add("--attempts", type=int, default=usual.attempts, help="for one request (default %(default)s)")
    add(
        "--limit-field",
        choices=("max_tokens", "max_completion_tokens"),
        default=Sampling("").limit_field,
        help="what the server calls the longest answer (default %(default)s)",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    usual = Sampling("")
    add = group.add_argument
    add("--max-tokens", type=int, default=usual.max_tokens, help="of an answer (default %(default)s)")
    add("--temperature", type=_number_or_none, default=usual.temperature, help="default %(default)s; or none")
    add("--top-p", type=_number_or_none, default=usual.top_p, help="default %(default)s")


def _number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def read_sampling(arguments: argparse.Namespace) -> Sampling:
    """Return what the flags say about the answers.

    Raises:
        SettingsError: No model is named, or a number is out of range.
    """
    model = arguments.model or os.environ.get(MODEL_VARIABLE, "")
    if not model:
        raise SettingsError(f"no model is named; give --model or set {MODEL_VARIABLE}", code="missing-model")
    return Sampling(
        model=model,
        max_tokens=arguments.max_tokens,
        limit_field=arguments.limit_field,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        images=not arguments.text_only,
        image_root=arguments.image_root or Path(),
    )


def read_budget(arguments: argparse.Namespace, model: str) -> RoundBudget:
    """Return the money of the round that the flags name."""
    price = read_price(arguments.prices, model) if arguments.prices else None
    return RoundBudget(arguments.round.resolve().name, price, arguments.budget)


def ledger_path(arguments: argparse.Namespace) -> Path:
    """Return where the round's calls are written down."""
    path: Path | None = arguments.ledger
    return path or arguments.round.resolve().parent / LEDGER


@contextmanager
def open_run(arguments: argparse.Namespace) -> Iterator[RoundRun]:
    """Yield what asks the server that the flags name; what the ledger has is not asked again."""
    sampling, server = read_sampling(arguments), read_server(arguments)
    budget = read_budget(arguments, sampling.model)
    with open_ledger(ledger_path(arguments)) as ledger:
        yield RoundRun(ledger, server, sampling, budget, structured=not arguments.plain)


def _generate(arguments: argparse.Namespace) -> None:
    sampling = read_sampling(arguments)
    budget = replace(read_budget(arguments, sampling.model), batch=arguments.batch in ("write", "read"))
    folder: Path = arguments.round
    with open_ledger(ledger_path(arguments)) as ledger:
        if arguments.estimate or arguments.batch:
            _without_server(arguments, folder, ledger, sampling, budget)
        else:
            server = read_server(arguments)
            outcome = generate_round(folder, ledger, server, sampling, budget, structured=not arguments.plain)
            sys.stdout.write(_summary(folder, outcome, ledger, budget))


def read_server(arguments: argparse.Namespace) -> Server:
    """Return the chat server's settings from the flags and the environment; does not connect.

    `--base-url` is used before OPENAI_BASE_URL. The key is OPENAI_API_KEY, which may be missing.

    Raises:
        SettingsError: No http(s) URL is given, the key cannot be sent in a header, or a number is out of
            range.
    """
    return Server(
        url=arguments.base_url or os.environ.get(URL_VARIABLE, ""),
        key=key_from_environment(),
        concurrency=arguments.concurrency,
        rate=arguments.rate,
        timeout=arguments.timeout,
        attempts=arguments.attempts,
    )


def _without_server(
    arguments: argparse.Namespace, folder: Path, ledger: Ledger, sampling: Sampling, budget: RoundBudget
) -> None:
    plans = plan_requests(read_round_requests(folder), ledger, sampling, budget)
    missing = list({plan.key: plan for plan in plans if ledger.find(plan.key) is None}.values())
    if arguments.batch == "read":
        if not arguments.results:
            raise SettingsError("--batch read needs --results, the service's files", code="missing-flag")
        _take(batch_files.read_results(arguments.results), folder, plans, ledger, sampling, budget)
        return
    require_money(missing, ledger, budget)
    if arguments.estimate:
        return
    limit = batch_files.ShardLimit(arguments.shard_lines, arguments.shard_bytes)
    paths = batch_files.write_batch(
        folder / _BATCH, missing, sampling, structured=not arguments.plain, limit=limit
    )
    sys.stdout.write(f"{len(missing)} requests in {len(paths)} files in {folder / _BATCH}\n")
    if arguments.batch == "ray":
        answers = ask_by_ray(paths, read_server(arguments), arguments.workers) if missing else ()
        _take((("ray", row) for row in answers), folder, plans, ledger, sampling, budget)


def _take(
    results: Iterable[tuple[str, JsonObject]],
    folder: Path,
    plans: list[PlannedCall],
    ledger: Ledger,
    sampling: Sampling,
    budget: RoundBudget,
) -> None:
    """Keep answers that others asked for; whatever stops them, those that came are written."""
    try:
        outcome = batch_files.take_results(results, plans, ledger, budget, sampling.model)
    finally:
        write_responses(folder / RESPONSES, plans, ledger, priced=budget.price is not None)
    sys.stdout.write(_summary(folder, outcome, ledger, budget))


def _summary(folder: Path, outcome: RoundOutcome, ledger: Ledger, budget: RoundBudget) -> str:
    line = (
        f"{folder}: {outcome.requests} requests: {outcome.cached} answered before, {outcome.answered} now,"
        f" failed: {describe_failures(outcome.failed)}"
    )
    if budget.price is None:
        return line + "\n"
    spent = ledger.spending(budget.round_name)
    line += f"; ${spent.answered:.2f} for answers"
    if spent.unknown or spent.lost:
        line += f", up to ${spent.perhaps:.2f} more for {spent.unknown} calls without an answer"
        line += f" and {spent.lost} in flight at a kill"
    return line + "\n"
