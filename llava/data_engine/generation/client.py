"""Ask any server that speaks OpenAI's chat completions, one attempt at a time.

Retries are the caller's (`generate`), because the ledger must see each attempt.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llava.data_engine.generation.ledger import Completion
from llava.data_engine.generation.prices import Usage
from llava.errors import SettingsError, one_line
from llava.schema import JsonObject

if TYPE_CHECKING:
    from openai import APIStatusError

logger = logging.getLogger(__name__)

MODEL_VARIABLE, URL_VARIABLE, KEY_VARIABLE = "LLAVA_ENGINE_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY"

_TRANSIENT = (408, 409, 425, 429)
_LONGEST_WAIT_S = 86_400.0
_LONGEST_DETAIL = 200
_NO_KEY = "none"  # local servers want none, the client wants one


@dataclass(frozen=True, slots=True)
class Server:
    """Where the model is served, and how hard it may be asked.

    Attributes:
        url: The base URL, which ends in "/v1" on most servers.
        key: The secret key; never stored or logged.
        concurrency: The most calls in flight.
        rate: The most calls a minute; None for no limit.
        timeout: Seconds that one attempt may take.
        attempts: How often a request is tried before it is given up.
    """

    url: str
    key: str = field(default="", repr=False)
    concurrency: int = 16
    rate: float | None = None
    timeout: float = 300.0
    attempts: int = 8

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("rate", 1e-3), ("timeout", 1e-3), ("attempts", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise SettingsError(f"{name} is {value}; wanted {least:g} or more", code="out-of-range")
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(
                f"the server's URL is {self.url!r}; wanted http://... or https://... from --base-url or"
                f" {URL_VARIABLE}",
                code="missing-server",
            )


def key_from_environment() -> str:
    """Return the secret key of the environment, or "" for servers that want none.

    Raises:
        SettingsError: It has characters that no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{KEY_VARIABLE} has characters that no key has; copy it again", code="bad-key")
    return key


class CallError(Exception):
    """One attempt brought no answer.

    Attributes:
        reason: A short, stable name, such as "http-429" or "time-out".
        final: Trying again would bring the same.
        charged: The server may charge for it all the same.
        wait: The seconds after which the server wants to be asked again; None if it did not say.
        detail: What happened, in a line.
        unstructured: The server does not know structured output.
    """

    def __init__(
        self, reason: str, detail: str, *, final: bool = False, charged: bool = False,
        wait: float | None = None, unstructured: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.final, self.charged = reason, detail, final, charged
        self.wait, self.unstructured = wait, unstructured


class ChatClient:
    """A connection to a server. Open it with `async with`, in the event loop that uses it."""

    def __init__(self, server: Server) -> None:
        try:
            from aiolimiter import AsyncLimiter
            from openai import AsyncOpenAI
        except ImportError as error:
            raise SettingsError(
                f"asking a server needs {error.name}: pip install 'llava[engine]'", code="missing-package"
            ) from error

        self._server = server
        self._client = AsyncOpenAI(
            base_url=server.url, api_key=server.key or _NO_KEY, max_retries=0, timeout=server.timeout
        )
        # Loads the library's larger half, which must not count into the first call's time.
        self._create = self._client.chat.completions.with_raw_response.create
        # A minute's calls must not leave at once, but one that is late must not slow the others down.
        self._limiter = None
        if server.rate:
            burst = max(1.0, server.rate / 600)
            self._limiter = AsyncLimiter(burst, burst * 60 / server.rate)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def turn(self) -> None:
        """Wait until the rate limit allows one more call."""
        if self._limiter:
            await self._limiter.acquire()

    async def complete(self, body: JsonObject) -> Completion:
        """Return the server's answer to one call.

        Raises:
            CallError: There is none.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            async with asyncio.timeout(self._server.timeout):
                # The library would walk through each part of the body that it knows by name.
                rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
                raw = await self._create(model=body["model"], messages=body["messages"], extra_body=rest)
        except APIStatusError as error:
            raise self._refusal(error) from None
        except (APITimeoutError, TimeoutError):
            detail = f"no answer within {self._server.timeout:g} s"
            raise CallError("time-out", detail, charged=True) from None
        except APIConnectionError as error:
            reason = error.__cause__ or error
            # Nothing was sent where no connection was made.
            charged = type(reason).__name__ != "ConnectError"
            raise CallError("connection", self._line(reason), charged=charged) from None
        return parse_completion(raw.content)

    def _refusal(self, error: APIStatusError) -> CallError:
        status, detail = error.status_code, self._line(error)
        # No retry brings money to an account.
        final = status < 500 and (status not in _TRANSIENT or error.code == "insufficient_quota")
        unstructured = status in (400, 422) and any(
            word in str(error) for word in ("response_format", "json_schema")
        )
        return CallError(
            f"http-{status}",
            detail,
            final=final,
            wait=read_wait(error.response.headers),
            unstructured=unstructured,
        )

    def _line(self, error: BaseException) -> str:
        """Return an error's text, without the key that some servers repeat."""
        text = one_line(error)
        return (text.replace(self._server.key, "KEY") if self._server.key else text)[:_LONGEST_DETAIL]


def parse_completion(content: bytes | str) -> Completion:
    """Return the answer in the body of a server's response.

    Raises:
        CallError: The body is not JSON, or not a chat completion; it is charged all the same.
    """
    try:
        body = json.loads(content)
        choice, usage = body["choices"][0], body.get("usage") or {}
        # The text is null where the model refuses or only thinks; what it says then is of no use.
        text, model, reason = (
            choice["message"]["content"] or "",
            body.get("model"),
            choice.get("finish_reason"),
        )
        if not isinstance(text, str):
            raise TypeError(f"the answer is {type(text).__name__}")
        tokens = _usage(usage)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        detail = f"not a chat completion ({type(error).__name__}: {one_line(error, 100)})"
        raise CallError("broken-body", detail, charged=True) from None
    return Completion(
        _storable(text), _storable(str(model)), tokens, _storable(str(reason)) if reason else None
    )


def _usage(usage: JsonObject) -> Usage:
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    counts.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    if not all(isinstance(count, int) and 0 <= count < 2**40 for count in counts):
        raise ValueError(f"the usage is {counts}")
    return Usage(counts[0], counts[1], min(counts[2], counts[0]))


def _storable(text: str) -> str:
    """Return a text without the half characters that no file can hold."""
    return text.encode("utf-8", "replace").decode()


def read_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date; None if there is none."""
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_S) if math.isfinite(seconds) else None
