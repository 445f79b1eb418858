"""Take the questions out of a model's response: structured JSON, JSON in other text, or labelled lines.

The labelled form is that of the first engine (2023), with its variants:

    Question: What is the cat on?
    Choices: (A) a door (B) a mat (C) a car (D) a bed
    Answer: The answer is (B): a mat.
    Explanation: ...

Source: engine_pipeline/data_demo/gptvqa_result.jsonl of MLLM-DataEngine, branch pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from string import ascii_uppercase

from llava.data_engine.text import Unusable
from llava.json_text import JsonFaultError, parse_json
from llava.schema import JsonObject

# About 50,000 tokens, more than any server returns.
LONGEST_RESPONSE = 200_000
# Objects that are tried in a text that is not JSON as a whole.
_MOST_OBJECTS = 200
_QUESTION_KEYS = ("instruction", "question")
_SKIPPED = re.compile(r"\W*skip\b", re.IGNORECASE)
_FIELD = re.compile(
    r"^[\s*#>\-]*(?:\d+[.)]\s*)?\**\s*"
    r"(?P<name>question|choices|options|short answer|answer|explanations?|reason(?:ing)?|rationale|lecture)"
    r"\s*\d*\s*\**\s*:\**[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# A label starts a line or follows a space: the bracket of "a dog (Alsatian)" is none.
_LABEL = re.compile(r"(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):])\s+", re.MULTILINE)
_ANSWER = re.compile(
    r"\W*(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)?\s*(?:is\b)?\s*:?\s*"
    r"(?:\((?P<bracket>[A-Za-z])\)|(?P<bare>[A-Z])(?=[.):]|\s*$))[.):]?\s*(?P<text>.*)",
    re.IGNORECASE | re.DOTALL,
)
# The first engine's prompt asked for boxes behind the objects: "the cat [0.1, 0.2, 0.3, 0.4]".
_BOX = re.compile(r"\s*\[\s*\d*\.?\d+(?:\s*,\s*\d*\.?\d+){3}\s*\]")


def parse_response(text: object) -> list[JsonObject]:
    """Return the engine records in a response, as written; nothing about them is checked.

    Raises:
        Unusable: `skipped` where the model declined, else `unparsable`.
    """
    if not isinstance(text, str) or len(text) > LONGEST_RESPONSE:
        raise Unusable("unparsable", "no text" if not isinstance(text, str) else f"{len(text)} characters")
    if _SKIPPED.match(text):
        raise Unusable("skipped", text.strip()[:200])
    rows = _json_rows(text) or list(_labelled_rows(text))
    if not rows:
        raise Unusable("unparsable", text.strip()[:200])
    return rows


def _json_rows(text: str) -> list[JsonObject]:
    body = re.sub(r"\A\s*```\w*\s*|\s*```\s*\Z", "", text)
    try:
        return _records(parse_json(body))
    except JsonFaultError:
        return [row for value in find_objects(text) for row in _records(value)]


def _records(value: object) -> list[JsonObject]:
    """Return the records in a decoded value: itself, its elements, or those of its only list."""
    if isinstance(value, dict) and not any(key in value for key in _QUESTION_KEYS):
        value = next((part for part in value.values() if isinstance(part, list)), None)
    rows = value if isinstance(value, list) else [value]
    return [row for row in rows if isinstance(row, dict) and any(key in row for key in _QUESTION_KEYS)]


def find_objects(text: str) -> list[JsonObject]:
    """Return the whole JSON objects in what a model wrote, outermost ones only.

    The text may be cut short, or have words around its JSON.
    """
    decoder, found, position = json.JSONDecoder(), [], 0
    for _ in range(_MOST_OBJECTS):
        position = text.find("{", position)
        if position < 0:
            break
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        found.append(value)
        position = end
    return found


def _labelled_rows(text: str) -> Iterator[JsonObject]:
    fields: dict[str, str] = {}
    found = list(_FIELD.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    for match, end in zip(found, ends, strict=False):
        name = match["name"].lower()
        if name == "question" and fields:
            yield _labelled_row(fields)
            fields = {}
        if name == "question" or fields:
            fields.setdefault("choices" if name == "options" else name, text[match.end() : end].strip())
    if fields:
        yield _labelled_row(fields)


def _labelled_row(fields: dict[str, str]) -> JsonObject:
    question, options = fields["question"], fields.get("choices", "")
    if not options and (first := _LABEL.search(question)):
        question, options = question[: first.start()], question[first.start() :]
    row: JsonObject = {"instruction": _without_boxes(question), "options": _split_options(options)}
    answer = fields.get("answer", "")
    match = _ANSWER.fullmatch(answer)
    if match:
        row["choice_answer"] = (match["bracket"] or match["bare"]).upper()
        answer = match["text"]
    if answer := _without_boxes(answer):
        row["answer"] = row["short_answer"] = answer
    if short := fields.get("short answer"):
        row["short_answer"] = _without_boxes(short)
    return row


def _split_options(text: str) -> list[str]:
    """Return the options of "(A) one (B) two", in one line or several; the labels must come in order."""
    starts: list[re.Match[str]] = []
    for label in _LABEL.finditer(text):
        if len(starts) < len(ascii_uppercase) and (label[1] or label[2]) == ascii_uppercase[len(starts)]:
            starts.append(label)
    ends = [*(label.start() for label in starts[1:]), len(text)]
    return [_without_boxes(text[label.end() : end]) for label, end in zip(starts, ends, strict=False)]


def _without_boxes(text: str) -> str:
    return _BOX.sub("", text).strip().strip(";").removesuffix(".").strip()
