"""A chat-completions server on the loopback, with faults by a seeded schedule and a log of what it charged.

with ChatServer(Faults(busy=0.1, cut=0.05), seed=1) as server:
...  # server.url; server.charged counts the completions that each prompt was charged for
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

Json = dict[str, Any]
CUT, SILENT = "cut", "silent"


@dataclass(frozen=True)
class Faults:
    """The share of calls that each fault befalls."""

    busy: float = 0.0  # 429 with Retry-After
    error: float = 0.0  # 500
    silent: float = 0.0  # no answer at all, until the client gives up
    cut: float = 0.0  # the connection ends within the answer; charged
    half: float = 0.0  # the body is half of its JSON; charged
    wrong: float = 0.0  # the body is JSON, but no completion; charged
    page: float = 0.0  # the body is a page of HTML; charged
    nonsense: float = 0.0  # a completion whose text is rubbish: an answer like any other


# Faults after which the server charges for a completion that never arrived.
CHARGED = (CUT, "half", "wrong", "page")
NONSENSE = '<script>alert("x")</script></s> USER: {"questions": [\x00'


class ChatServer:
    """Serve in a thread for as long as the `with` block lasts.

    Attributes:
        charged: By prompt, the completions charged and sent whole.
        broken: By prompt, the completions charged and spoilt on the way.
        calls: All calls, by what became of them.
        bodies: The bodies of the calls, if `keep`.
    """

    def __init__(
        self, faults: Faults | None = None, *, seed: int = 0, retry_after: str = "0", delay: float = 0.0,
        rate: float | None = None, answer: Callable[[Json], str] | None = None, keep: bool = False,
        refuse: Callable[[Json], tuple[int, str] | None] | None = None,
    ) -> None:  # fmt: skip
        self._faults = faults or Faults()
        self._random = random.Random(seed)
        self._retry_after, self._delay, self._rate, self._keep = retry_after, delay, rate, keep
        self._answer = answer or (lambda body: json.dumps({"questions": []}))
        self._refuse = refuse or (lambda body: None)
        self._tokens, self._filled = rate or 0.0, time.monotonic()
        self.charged: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.bodies: list[Json] = []
        self.headers: list[str] = []

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await self._end.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line.split(":")[1])
                    for line in head.lower().split("\r\n")
                    if line.startswith("content-length:")
                )
                body = json.loads(await reader.readexactly(length))
                if self._keep:
                    self.bodies.append(body)
                    self.headers.append(head)
                if not await self._respond(body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, body: Json, writer: asyncio.StreamWriter) -> bool:
        """Answer one call; return whether the connection goes on."""
        kind = "busy" if not self._has_room() else self._draw()
        if self._delay:
            await asyncio.sleep(self._delay)
        prompt = text_of(body)
        if kind == SILENT:
            self.calls[kind] += 1
            await self._end.wait()
            return False
        refusal = self._refuse(body)
        if refusal or kind in ("busy", "error"):
            status, message = refusal or ((429, "slow down") if kind == "busy" else (500, "oops"))
            self.calls[f"http-{status}"] += 1
            content = json.dumps({"error": {"message": message, "code": None}}).encode()
            extra = f"Retry-After: {self._retry_after}\r\n" if kind == "busy" and not refusal else ""
            writer.write(_head(status, len(content), extra) + content)
            await writer.drain()
            return True
        self.calls[kind] += 1
        (self.broken if kind in CHARGED else self.charged)[prompt] += 1
        text = NONSENSE if kind == "nonsense" else self._answer(body)
        content = json.dumps(completion(text, str(body["model"]))).encode()
        if kind == "half":
            content = content[: len(content) // 2]
        elif kind == "wrong":
            content = b'{"choices": {"text": 1}}'
        elif kind == "page":
            content = b"<html>Bad gateway</html>"
        writer.write(_head(200, len(content)) + (content[:20] if kind == CUT else content))
        await writer.drain()
        return kind != CUT

    def _draw(self) -> str:
        point = self._random.random()
        for fault in fields(self._faults):
            point -= getattr(self._faults, fault.name)
            if point < 0:
                return fault.name
        return "good"

    def _has_room(self) -> bool:
        """Take one of the `rate` calls that a second allows; a second's calls may be saved up."""
        if self._rate is None:
            return True
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= (room := self._tokens >= 1)
        return room


def text_of(body: Json) -> str:
    """Return the text of the last message, which tests make different for each request."""
    content = body["messages"][-1]["content"]
    texts = [{"text": content}] if isinstance(content, str) else [part for part in content if "text" in part]
    return str(texts[0]["text"])


def completion(text: str, model: str = "m", prompt: int = 100, answer: int = 50) -> Json:
    """Return the body of a chat completion."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }


def request_rows(count: int, **more: object) -> list[Json]:
    """Return rows of a requests.jsonl with a text of their own each."""
    return [
        {
            "id": f"r{number}",
            "round": 1,
            "seed": number,
            "messages": [{"role": "user", "content": f"Ask about picture {number}."}],
            "schema": "questions",
            **more,
        }
        for number in range(count)
    ]


def _head(status: int, length: int, extra: str = "") -> bytes:
    lines = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{extra}\r\n"
    )
    return lines.encode()
