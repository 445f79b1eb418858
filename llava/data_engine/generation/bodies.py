"""Make the JSON body of a chat-completions call from a row of requests.jsonl."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.data_engine.requests.rows import read_request_rows
from llava.errors import DataError, SettingsError, shown
from llava.image_reading import image_path, require_image_file
from llava.schema import JsonObject

CHAT_URL = "/v1/chat/completions"

_RECORD: JsonObject = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string"},
        "answer": {"type": "string"},
        "short_answer": {"type": "string"},
        "options": {"type": "array", "items": {"type": "string"}},
        "choice_answer": {"type": "string", "enum": ["A", "B", "C", "D"]},
    },
    "required": ["instruction", "answer", "short_answer", "options", "choice_answer"],
    "additionalProperties": False,
}
STRUCTURES: dict[str, JsonObject] = {
    # A list needs an object around it: servers accept no array at the top.
    "questions": {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": _RECORD}},
        "required": ["questions"],
        "additionalProperties": False,
    },
    # What cleaning asks: the right options of a question, and its type.
    "letters": {
        "type": "object",
        "properties": {
            "letters": {"type": "array", "items": {"type": "string", "enum": ["A", "B", "C", "D"]}}
        },
        "required": ["letters"],
        "additionalProperties": False,
    },
    "type": {
        "type": "object",
        "properties": {"type": {"type": "string"}},
        "required": ["type"],
        "additionalProperties": False,
    },
    # What improving a prompt asks: a verdict on a question, and a change of a rule.
    "verdict": {
        "type": "object",
        "properties": {
            "passed": {"type": "boolean"},
            "tag": {"type": "string"},
            "note": {"type": "string"},
        },
        "required": ["passed", "tag", "note"],
        "additionalProperties": False,
    },
    "rule_change": {
        "type": "object",
        "properties": {
            "action": {"type": "string", "enum": ["add", "change", "remove"]},
            "rule": {"type": "integer"},
            "text": {"type": "string"},
            "why": {"type": "string"},
        },
        "required": ["action", "rule", "text", "why"],
        "additionalProperties": False,
    },
}
"""The structures that a request's `schema` may name, as JSON Schema."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the model answers.

    Attributes:
        model: The model's name on the server.
        max_tokens: The most tokens of an answer.
        limit_field: What the server calls that limit; newer commercial models want "max_completion_tokens".
        temperature: None leaves it to the server.
        top_p: None leaves it to the server.
        images: Attach the images; else send the texts only.
        image_root: The folder that image paths start from.
    """

    model: str
    max_tokens: int = 1024
    limit_field: str = "max_tokens"
    temperature: float | None = 0.7
    top_p: float | None = None
    images: bool = True
    image_root: Path = Path()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise SettingsError(f"max_tokens is {self.max_tokens}; wanted 1 or more", code="out-of-range")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A row of requests.jsonl: what to ask, under an id of its own."""

    id: str
    messages: list[JsonObject]
    structure: str | None
    seed: int | None
    round: int | None
    where: str

    def body(self, sampling: Sampling, *, structured: bool) -> JsonObject:
        """Return the body to send, with images as data URLs.

        Raises:
            DataError: An image is missing.
        """
        body = self._body(sampling, _data_url)
        if structured and self.structure:
            schema = {"name": self.structure, "strict": True, "schema": STRUCTURES[self.structure]}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def key(self, sampling: Sampling) -> str:
        """Return the hash that the ledger knows the request by: of all that the answer depends on.

        An image counts by its content. The response format does not count: an answer that a server without
        structured output gave stays paid for.

        Raises:
            DataError: An image is missing.
        """
        content = [self._body(sampling, _digest_url), self.structure]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def size(self, sampling: Sampling) -> tuple[int, int]:
        """Return the bytes of the prompt's text and the number of images, for estimates of its tokens."""
        parts = [part for message in self.messages for part in _parts(message)]
        texts = [str(part["text"]) for part in parts if part["type"] == "text"]
        # The structure is part of the prompt, too.
        texts += [json.dumps(STRUCTURES[self.structure])] if self.structure else []
        images = len(parts) - sum(part["type"] == "text" for part in parts) if sampling.images else 0
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts), images

    def _body(self, sampling: Sampling, url: Callable[[Path], str]) -> JsonObject:
        body: JsonObject = {
            "model": sampling.model,
            "messages": [self._message(message, sampling, url) for message in self.messages],
            sampling.limit_field: sampling.max_tokens,
        }
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": self.seed}
        return body | {name: value for name, value in options.items() if value is not None}

    def _message(self, message: JsonObject, sampling: Sampling, url: Callable[[Path], str]) -> JsonObject:
        if isinstance(message["content"], str):
            return {"role": message["role"], "content": message["content"]}
        content = []
        for part in _parts(message):
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif sampling.images:
                path = image_path(sampling.image_root, part["path"], self.where)
                require_image_file(path)
                content.append({"type": "image_url", "image_url": {"url": url(path)}})
        return {"role": message["role"], "content": content}


def read_requests(path: Path, *, number: int | None = None) -> Iterator[ChatRequest]:
    """Yield the requests of a requests.jsonl; `number` is that of `read_request_rows`.

    Raises:
        DataError: The file is missing, or a row is not a request; the message names the line.
    """
    for where, row in read_request_rows(path, number=number):
        yield _request(row, where)


def _request(row: JsonObject, where: str) -> ChatRequest:
    structure, seed = row.get("schema"), row.get("seed")
    if structure is not None and structure not in STRUCTURES:
        raise DataError(
            f"{where}: no structure {shown(structure)}; there are: {', '.join(STRUCTURES)}",
            code="unknown-structure",
        )
    number = row.get("round")
    for field, value in (("seed", seed), ("round", number)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise DataError(f"{where}: {field} is {shown(value)}; wanted a whole number", code="bad-request")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise DataError(
            f"{where}: messages are {shown(messages)}; wanted a list of role and content, whose parts are"
            " text or image_path",
            code="bad-request",
        )
    return ChatRequest(row["id"], messages, structure, seed, number, where)


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if not isinstance(content, list):
        return isinstance(content, str)
    fields = {"text": "text", "image_path": "path"}
    return all(
        isinstance(part, dict)
        and part.get("type") in fields
        and isinstance(part.get(fields[str(part["type"])]), str)
        for part in content
    )


def _parts(message: JsonObject) -> list[JsonObject]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _digest_url(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
