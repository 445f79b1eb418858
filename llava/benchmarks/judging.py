"""What a benchmark tells a judge, a chat model that grades answers, and how it reads the replies.

Nothing here asks a judge: `llava judge` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.schema import JsonObject, RecordId

if TYPE_CHECKING:
    from llava.benchmarks.base import Task

# What could end the part of a prompt that holds an answer: the headings of prompts, and the marks by which
# chat templates separate their turns.
_MARKS = re.compile(
    r"\[(?=\s*(?:/?\s*INST|/?\s*SYS|System|Context|Question|Assistant|End\s+of)\b)"
    r"|<(?=\s*(?:\||</?SYS|/?s>|/?(?:start|end)_of_turn))",
    re.IGNORECASE,
)
_LONGEST_JUDGE = 100


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What a judge said about one answer.

    Attributes:
        model: What the server calls the judge.
        text: All it said.
        grade: The numbers in it.
    """

    model: str
    text: str
    grade: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judging:
    """How a judge grades the answers to a benchmark.

    Attributes:
        prompts: Returns the messages that ask for the grade of each answer, by the question's id.
        parse: Returns the numbers in a reply; None if it is not a grade.
        write: Writes the benchmark's official file of the replies, one of each run for every question.
        file: Where, under the benchmark's folder: {name} is the model's name, {judge} the judge's, {runs} how
            often each answer was graded. Without {runs} once is all that the file can hold.
        wanted: The grade that a reply should be, in words.
        temperature: The official one.
        max_tokens: The most tokens of a reply.
    """

    prompts: Callable[[Task], Mapping[RecordId, list[JsonObject]]]
    parse: Callable[[str], tuple[float, ...] | None]
    write: Callable[[Task, Mapping[RecordId, Sequence[JudgeReply]], Path], None]
    file: str
    wanted: str
    temperature: float
    max_tokens: int


def contain(answer: str) -> str:
    """Return an answer in which no bracket can be read as the start of a heading or turn of the prompt.

    The bracket becomes a parenthesis; an answer without such marks stays as it is.
    """
    return _MARKS.sub("(", answer)


def name_judges(models: Iterable[object], prompt: str = "") -> str:
    """Return the judges of a file as one text that is safe to print, such as "gpt-4"; "" if none is named.

    Args:
        models: The judge's name beside each grade; a file of several judges' grades names them all.
        prompt: Which prompt they got, if not the official one.
    """
    names = sorted({model for model in models if isinstance(model, str) and model})
    text = "".join(c for c in " + ".join(names) if c.isprintable())[:_LONGEST_JUDGE]
    return f"{text} ({prompt})" if text and prompt else text
