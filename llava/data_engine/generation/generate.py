"""Turn a round's requests into responses: `llava engine generate rounds/1`."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llava.data_engine.generation.bodies import ChatRequest, Sampling, read_requests
from llava.data_engine.generation.client import CallError, ChatClient, Server
from llava.data_engine.generation.ledger import Completion, Ledger
from llava.data_engine.generation.prices import Price, Usage
from llava.data_engine.loop.round import LEDGER, REQUESTS, RESPONSES, ROUND_FILE, read_settings
from llava.errors import DataError, LlavaError, SettingsError, one_line
from llava.files import write_jsonl
from llava.log import progress_bar
from llava.schema import JsonObject

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)


# A token is at least a byte, and about four in English. A message has a few of its own.
_BYTES_PER_TOKEN, _TOKENS_PER_MESSAGE = 4, 16
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
# After so many requests in a row that brought nothing, the fault is not in the requests.
_HOPELESS = 20

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """What one request asks for, and what it may cost.

    Attributes:
        request: The request.
        key: Its hash, by which the ledger knows it.
        most: The most dollars that a call can cost.
        likely: The dollars that a call will probably cost.
    """

    request: ChatRequest
    key: str
    most: float
    likely: float


@dataclass(slots=True)
class RoundOutcome:
    """What a run did: requests by how they ended, and the reasons of those that brought no answer."""

    requests: int = 0
    cached: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class RoundBudget:
    """A round's money.

    Attributes:
        round_name: The round whose calls count.
        price: Of the model; None counts no money.
        dollars: The most that the round may cost in all its runs; None for no limit.
        batch: Whether calls have the price of batch files.
    """

    round_name: str
    price: Price | None = None
    dollars: float | None = None
    batch: bool = False

    def __post_init__(self) -> None:
        if self.dollars is not None and self.price is None:
            raise SettingsError("--budget needs --prices, a file with the model's price", code="missing-flag")
        if self.dollars is not None and not self.dollars >= 0:
            raise SettingsError(f"the budget is {self.dollars}; wanted dollars", code="out-of-range")

    def cost(self, usage: Usage) -> float:
        """Return the dollars of one call; 0 without a price."""
        return self.price.cost(usage, batch=self.batch) if self.price else 0.0


def read_round_requests(folder: Path) -> list[ChatRequest]:
    """Return the requests of a round's folder.

    Raises:
        DataError: They are wrong, or are another round's than the folder's settings say.
    """
    number = read_settings(folder).round if (folder / ROUND_FILE).is_file() else None
    return list(read_requests(folder / REQUESTS, number=number))


def plan_requests(
    requests: list[ChatRequest],
    ledger: Ledger,
    sampling: Sampling,
    budget: RoundBudget,
) -> list[PlannedCall]:
    """Return each request with its hash and its cost, likely and at most.

    Raises:
        DataError: An image is missing.
    """
    usual = ledger.mean_completion(sampling.model) or sampling.max_tokens
    plans = []
    for request in requests:
        text, images = request.size(sampling)
        seen = images * (budget.price.image_tokens if budget.price else 0)
        most = text + seen + _TOKENS_PER_MESSAGE * len(request.messages)
        likely = text / _BYTES_PER_TOKEN + seen
        plans.append(
            PlannedCall(
                request,
                request.key(sampling),
                budget.cost(Usage(round(most), sampling.max_tokens)),
                budget.cost(Usage(round(likely), round(usual))),
            )
        )
    return plans


def require_money(plans: list[PlannedCall], ledger: Ledger, budget: RoundBudget) -> None:
    """Log what the requests will cost, and refuse what the budget will not pay.

    Raises:
        SettingsError: The likely cost is more than the money left.
    """
    if budget.price is None:
        logger.info("%d requests to ask; no price is given, so money is not counted", len(plans))
        return
    likely, most = sum(plan.likely for plan in plans), sum(plan.most for plan in plans)
    spent = ledger.total(budget.round_name)
    told = f"{len(plans)} requests to ask: about ${likely:.2f}, ${most:.2f} at most; ${spent:.2f} spent"
    logger.info("%s (prices of %s, %s)", told, budget.price.date, budget.price.source)
    if budget.dollars is not None and spent + likely > budget.dollars:
        raise SettingsError(
            f"{told}; the budget is ${budget.dollars:.2f}: raise --budget, or plan fewer requests",
            code="over-budget",
        )


class RoundRun:
    """Asks a server for the answers that the ledger does not have."""

    def __init__(
        self, ledger: Ledger, server: Server, sampling: Sampling, budget: RoundBudget, *,
        structured: bool = True, sleep: Sleep = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._server = server
        self._sampling = sampling
        self._budget = budget
        self._structured = structured
        self._sleep = sleep
        self._random = random.Random()
        self._in_a_row = 0
        self._in_flight = 0
        self._stop: LlavaError | None = None
        self.outcome = RoundOutcome()

    def answer(self, plans: list[PlannedCall]) -> None:
        """Ask for those of `plans` that the ledger has no answer to; two of the same content are asked once.

        Raises:
            SettingsError: The budget is not enough. What was answered is in the ledger.
            DataError: One request after the other failed.
        """
        missing = list({plan.key: plan for plan in plans if self._ledger.find(plan.key) is None}.values())
        self.outcome.requests += len(plans)
        self.outcome.cached += len(plans) - len(missing)
        self._in_a_row = 0
        if missing:
            require_money(missing, self._ledger, self._budget)
            asyncio.run(self.run(missing))

    def ask(
        self, contents: Iterable[str | list[JsonObject]], structure: str, *, seed: int, where: str
    ) -> list[str | None]:
        """Return the answers to prompts that are no round's requests; None where the server gave none.

        Args:
            contents: The user's messages, one for each prompt.
            structure: The wanted one of `STRUCTURES`.
            seed: Of the answers.
            where: What asks, for messages.

        Raises:
            SettingsError: The budget is not enough. What was answered is in the ledger.
            DataError: One request after the other failed.
        """
        requests = [
            ChatRequest(str(number), [{"role": "user", "content": content}], structure, seed, None, where)
            for number, content in enumerate(contents)
        ]
        plans = plan_requests(requests, self._ledger, self._sampling, self._budget)
        self.answer(plans)
        found = (self._ledger.find(plan.key) for plan in plans)
        return [paid.completion.text if paid else None for paid in found]

    async def run(self, plans: list[PlannedCall]) -> None:
        """Ask for all of `plans`, as many at a time as the server allows.

        Raises:
            SettingsError: The budget is used up. What was answered is in the ledger.
            DataError: One request after the other failed.
        """
        waiting = iter(plans)
        bar = progress_bar(name="requests", total=len(plans), unit="req")
        async with ChatClient(self._server) as client, asyncio.TaskGroup() as group:
            for _ in range(min(self._server.concurrency, len(plans))):
                group.create_task(self._work(client, waiting, bar))
        bar.close()
        if self._stop:
            raise self._stop

    async def _work(self, client: ChatClient, waiting: Iterator[PlannedCall], bar: tqdm[NoReturn]) -> None:
        for plan in waiting:
            if self._stop:
                return
            try:
                await self._answer(client, plan)
                self.outcome.answered += 1
                self._in_a_row = 0
            except CallError as error:
                self.outcome.failed[error.reason] += 1
                self._in_a_row += 1
                if self._in_a_row >= _HOPELESS:
                    self._stop = DataError(
                        f"{self._server.url}: {self._in_a_row} requests in a row failed, the last with"
                        f" {error}; mend it and run again",
                        code="server-fails",
                    )
            except LlavaError as error:
                self._stop = error
                return
            except sqlite3.Error as error:
                self._stop = DataError(f"{LEDGER}: {one_line(error)}", code="broken-ledger")
                return
            bar.set_postfix_str(self._money(), refresh=False)
            bar.update()

    def _money(self) -> str:
        if self._budget.price is None:
            return ""
        spent = f"${self._ledger.total(self._budget.round_name):.2f}"
        return spent if self._budget.dollars is None else f"{spent} of ${self._budget.dollars:.2f}"

    async def _answer(self, client: ChatClient, plan: PlannedCall) -> None:
        """Try until there is an answer, the error is final, or the attempts are used up."""
        tried = 0
        while True:
            try:
                await self._attempt(client, plan)
                return
            except CallError as error:
                tried += 1
                if error.final or tried >= self._server.attempts or self._stop:
                    raise
                await self._sleep(self._wait(tried, error.wait))
                if self._stop:
                    raise

    def _wait(self, tried: int, wanted: float | None) -> float:
        """Return the seconds until the next attempt: never less than the server wants."""
        own = min(_FIRST_WAIT_S * 2 ** (tried - 1), _LONGEST_WAIT_S) * self._random.uniform(0.5, 1.0)
        return own if wanted is None else wanted + own / 4

    async def _attempt(self, client: ChatClient, plan: PlannedCall) -> None:
        """Make one call; a second one if it shows that the server has no structured output."""
        structured = self._structured
        try:
            await self._call(client, plan, structured=structured)
        except CallError as error:
            if not (structured and error.unstructured):
                raise
            if self._structured:
                logger.info("%s has no structured output; going on without", self._server.url)
            self._structured = False
            await self._call(client, plan, structured=False)

    async def _call(self, client: ChatClient, plan: PlannedCall, *, structured: bool) -> None:
        await client.turn()
        body = plan.request.body(self._sampling, structured=structured)
        number = await self._reserve(plan)
        self._in_flight += 1
        try:
            completion = await client.complete(body)
        except CallError as error:
            self._ledger.fail(number, charged=error.charged, detail=str(error))
            raise
        finally:
            self._in_flight -= 1
        # A server that does not count its tokens may have used all that were reserved.
        cost = self._budget.cost(completion.usage) if completion.usage.prompt else plan.most
        self._ledger.settle(number, completion, cost)

    async def _reserve(self, plan: PlannedCall) -> int:
        """Reserve the money for a call; wait for calls in flight, which may cost less than they reserved."""
        while True:
            number = self._ledger.reserve(
                plan.key, self._budget.round_name, self._sampling.model, plan.most, self._budget.dollars
            )
            if number is not None:
                return number
            if not self._in_flight:
                spent = self._ledger.total(self._budget.round_name)
                raise SettingsError(
                    f"the budget of ${self._budget.dollars:.2f} is used up: ${spent:.2f} are spent and the"
                    f" next call may cost ${plan.most:.4f}; raise --budget and run again: answers are kept",
                    code="budget-exhausted",
                )
            await asyncio.sleep(0.05)


def write_responses(path: Path, plans: list[PlannedCall], ledger: Ledger, *, priced: bool) -> int:
    """Write the answers that the ledger has, in the order of the requests, and return their number."""
    rows = [
        _row(plan.request.id, found.completion, found.cost if priced else None, found.attempts)
        for plan in plans
        if (found := ledger.find(plan.key))
    ]
    write_jsonl(path, rows)
    return len(rows)


def _row(name: str, completion: Completion, cost: float | None, attempts: int) -> JsonObject:
    usage = completion.usage
    return {
        "id": name,
        "text": completion.text,
        "model": completion.model,
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "cached_tokens": usage.cached,
        },
        "cost": cost,
        "attempts": attempts,
        "finish_reason": completion.finish_reason,
    }


def generate_round(
    folder: Path, ledger: Ledger, server: Server, sampling: Sampling, budget: RoundBudget, *,
    structured: bool = True, sleep: Sleep = asyncio.sleep,
) -> RoundOutcome:  # fmt: skip
    """Answer the requests of a round's folder, and write its responses.jsonl.

    Whatever stops it, all answers that are paid for are written; running it again goes on from there.

    Raises:
        DataError: The requests are wrong, an image is missing, or the server answers none of them.
        SettingsError: The budget is not enough.
    """
    plans = plan_requests(read_round_requests(folder), ledger, sampling, budget)
    generation = RoundRun(ledger, server, sampling, budget, structured=structured, sleep=sleep)
    outcome = generation.outcome
    try:
        generation.answer(plans)
    finally:
        written = write_responses(folder / RESPONSES, plans, ledger, priced=budget.price is not None)
    if plans and not written:
        raise DataError(
            f"{server.url}: none of {len(plans)} requests was answered: {describe_failures(outcome.failed)}",
            code="no-responses",
        )
    return outcome


def describe_failures(failed: Counter[str]) -> str:
    """Return counted reasons as "3 http-400, 1 time-out"."""
    return ", ".join(f"{count} {reason}" for reason, count in failed.most_common()) or "none"
