"""Ask a server from the workers of a Ray cluster, by `ray.data.llm`: `generate ROUND --batch ray`."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

from llava.data_engine.generation.bodies import CHAT_URL
from llava.data_engine.generation.client import KEY_VARIABLE, Server
from llava.errors import DataError, SettingsError, one_line
from llava.schema import JsonObject


def ask_by_ray(shards: list[Path], server: Server, workers: int) -> Iterator[JsonObject]:
    """Yield the answers to batch files as lines of a batch service's results, in any order, as they come.

    Each worker makes `server.concurrency` calls at a time. The key is not sent to the workers: each reads it
    from its own environment.

    Raises:
        SettingsError: Ray is missing, or the rate is too low to be divided.
        DataError: Ray stopped; what was yielded before is whole.
    """
    qps = int(server.rate / 60 / workers) if server.rate else None
    if qps == 0:
        raise SettingsError(
            f"--rate {server.rate:g}: each of Ray's {workers} workers makes a call a second or more; wanted"
            f" {60 * workers} or more",
            code="out-of-range",
        )
    try:
        import ray.data
        from ray.data.llm import HttpRequestProcessorConfig, build_processor
    except ImportError as error:
        raise SettingsError(
            f"--batch ray needs {error.name}: pip install 'llava[ray]'", code="missing-package"
        ) from error

    config = HttpRequestProcessorConfig(
        url=server.url.rstrip("/").removesuffix("/v1") + CHAT_URL,
        batch_size=server.concurrency,
        concurrency=workers,
        qps=qps,
        max_retries=server.attempts - 1,
        session_factory=partial(_Session, server.timeout),
    )
    processor = build_processor(config, preprocess=_to_payload, postprocess=_to_line)
    try:
        for row in processor(ray.data.read_text([str(path) for path in shards])).iter_rows():
            yield json.loads(row["line"])
    except ray.exceptions.RayError as error:
        raise DataError(
            f"{server.url}: Ray stopped ({one_line(error, 300)}); answers so far are kept: run again",
            code="ray-stopped",
        ) from error


class _Session:
    """A worker's connection to the server, with the methods that Ray calls.

    A body travels as text: in Ray's tables all parts of a message get the same fields, null where absent.
    """

    def __init__(self, timeout: float) -> None:
        from aiohttp import ClientSession, ClientTimeout

        key = os.environ.get(KEY_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session = ClientSession(headers=headers, timeout=ClientTimeout(total=timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    def post(self, url: str, *, headers: dict[str, str], data: str) -> Awaitable[object]:
        return self._session.post(url, headers=headers, data=json.loads(data))


def _to_payload(row: JsonObject) -> JsonObject:
    line = json.loads(row["text"])
    return {"custom_id": line["custom_id"], "payload": json.dumps(line["body"])}


def _to_line(row: JsonObject) -> JsonObject:
    """Return a row with the line of results; the status is not known, but an answer has choices."""
    body: JsonObject = row["http_response"]
    line: JsonObject = {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}
    if "choices" not in body:
        line = {"custom_id": row["custom_id"], "error": body}
    # Ray turns lists into arrays.
    return {"line": json.dumps(line, default=lambda array: array.tolist())}
