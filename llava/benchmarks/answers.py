"""Answers files read, and each answer put to its question.

Three shapes are read: LLaVA's rows (`question_id`, `prompt`, `text`, ...), rows of a submission
(`question_id` or `questionId` with `prediction` or `answer`), one object a line or in one JSON array, and one
JSON object of id -> text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import AnswersError
from llava.files import read_json, read_jsonl
from llava.schema import Answer, Question

ID_KEYS = ("question_id", "questionId")
TEXT_KEYS = ("text", "prediction", "answer")
KNOWN_KEYS = {*ID_KEYS, "prompt", "text", "answer_id", "model_id", "metadata"}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Matched:
    """One answer, or None, for each question in order.

    `duplicates` counts rows that said again what had been said; `other_prompts` answers whose prompt and
    question text have neither in the other, which may have been asked something else. `by_order` counts
    answers without prompt to one of several questions of one id: only their order says which.
    """

    answers: list[Answer | None]
    duplicates: int
    other_prompts: int
    by_order: int = 0

    @property
    def missing(self) -> int:
        """How many questions have no answer."""
        return sum(answer is None for answer in self.answers)


def read_answers(path: Path) -> list[Answer]:
    """The answers in `path`, in the file's order.

    Raises:
        AnswersError: A row has no id or no text.
        DataError: The file is missing or a line is not JSON.
    """
    rows: Iterable[tuple[str, Any]]
    if path.suffix == ".json":
        value = read_json(path)
        if isinstance(value, dict):
            value = [{"question_id": key, "text": text} for key, text in value.items()]
        if not isinstance(value, list):
            raise AnswersError(
                f"{path}: found {type(value).__name__}, wanted a list of answers, or id -> text"
            )
        rows = ((f"{path}: element {index}", row) for index, row in enumerate(value))
    else:
        rows = ((f"{path}:{line}", row) for line, row in read_jsonl(path))
    return [_answer(row, where) for where, row in rows]


def _answer(row: Any, where: str) -> Answer:
    if not isinstance(row, dict):
        raise AnswersError(f"{where}: found {type(row).__name__}, wanted an answer (a JSON object)")
    identifier = next((row[key] for key in ID_KEYS if key in row), None)
    text = next((row[key] for key in TEXT_KEYS if key in row), None)
    prompt = row.get("prompt") or ""
    for found, kinds, what in ((identifier, (str, int), "id"), (text, str, "text"), (prompt, str, "prompt")):
        if found is not None and not isinstance(found, kinds):
            raise AnswersError(f"{where}: the {what} is {found!r}, a {type(found).__name__}, wanted text")
    if identifier is None or text is None:
        raise AnswersError(
            f"{where}: found the keys {', '.join(row)}; wanted an id ({' or '.join(ID_KEYS)}) "
            f"and a text ({', '.join(TEXT_KEYS)})"
        )
    return Answer(
        question_id=identifier,
        prompt=prompt,
        text=text,
        answer_id=row.get("answer_id", ""),
        model_id=str(row.get("model_id") or ""),
        metadata=row.get("metadata") or {},
        extra={key: value for key, value in row.items() if key not in KNOWN_KEYS},
    )


def match(
    questions: Sequence[Question], answers: Sequence[Answer], *, allow_missing: bool, name: str
) -> Matched:
    """Put each answer to its question: by id; where an id repeats, by prompt, then by order.

    Ids are compared as text (SEED's 101669 is also "101669"). An answer given twice in the same words counts
    once. Two questions with the same id, text and image may share one answer.

    Raises:
        AnswersError: Answers to unknown questions, answers that contradict, and, unless `allow_missing`,
            questions without answer; the message says how many and names the first.
    """
    asked: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        asked[str(question.id)].append(index)
    given: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        given[str(answer.question_id)].append(answer)
    unknown = [key for key in given if key not in asked]
    if unknown:
        raise AnswersError(
            f"{name}: {len(unknown)} answered ids are not among its {len(questions)} questions: "
            f"{first(unknown)}; were the answers made from another question file?"
        )
    found: list[Answer | None] = [None] * len(questions)
    duplicates = by_order = 0
    for key, indices in asked.items():
        rows = given.get(key, [])
        if len(indices) == 1:
            found[indices[0]] = rows[0] if rows else None
            duplicates += _same(rows, key, name)
        elif rows:
            placed, doubled = _by_prompt([questions[index] for index in indices], rows, key, name)
            duplicates += doubled
            if len({questions[index].text for index in indices}) > 1:
                by_order += sum(row is not None and not row.prompt for row in placed)
            for index, row in zip(indices, placed, strict=True):
                found[index] = row
    missing = [str(questions[index].id) for index, answer in enumerate(found) if answer is None]
    if missing and not allow_missing:
        raise AnswersError(
            f"{name}: {len(missing)} of {len(questions)} questions have no answer: {first(missing)}; "
            "answer them, or count them as wrong with --allow-missing"
        )
    other = sum(_is_other(question.text, answer) for question, answer in zip(questions, found, strict=True))
    return Matched(found, duplicates, other, by_order)


def _is_other(text: str, answer: Answer | None) -> bool:
    if answer is None or not answer.prompt or not text:
        return False
    asked, wanted = _squeeze(answer.prompt), _squeeze(text)
    return asked not in wanted and wanted not in asked


def first(ids: Sequence[object]) -> str:
    """The first few ids for a message, with dots when there are more."""
    return ", ".join(str(item) for item in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def _same(rows: Sequence[Answer], key: str, name: str) -> int:
    if len({row.text for row in rows}) > 1:
        texts = first([repr(row.text) for row in rows])
        raise AnswersError(f"{name}: question {key} has {len(rows)} answers that contradict: {texts}")
    return max(0, len(rows) - 1)


def _by_prompt(
    questions: Sequence[Question], rows: Sequence[Answer], key: str, name: str
) -> tuple[list[Answer | None], int]:
    """Share `rows` out among questions with one id. Rows whose prompt fits no question go by order."""
    wanted = [_squeeze(question.text) for question in questions]
    placed: list[Answer | None] = [None] * len(questions)
    strangers = []
    doubled = 0
    for row in rows:
        prompt = _squeeze(row.prompt)
        alike = [slot for slot, text in enumerate(wanted) if prompt and text == prompt]
        free = [slot for slot in alike if placed[slot] is None]
        if free:
            placed[free[0]] = row
        elif alike:
            doubled += _same([row, *(p for slot in alike if (p := placed[slot]))], key, name) > 0
        else:
            strangers.append(row)
    free = [slot for slot, answer in enumerate(placed) if answer is None]
    if len(strangers) == len(free):
        for slot, row in zip(free, strangers, strict=True):
            placed[slot] = row
    elif strangers and len(set(wanted)) > 1:
        raise AnswersError(
            f"{name}: {len(questions)} questions share the id {key}, and {len(strangers)} of its answers "
            f"have prompts that fit none of them: {strangers[0].prompt!r}"
        )
    elif strangers:
        doubled += _same(strangers, key, name)
        placed[free[0]] = strangers[0]
    for slot, answer in enumerate(placed):
        if answer is None:
            twins = (p for other, p in enumerate(placed) if p and wanted[other] == wanted[slot])
            placed[slot] = next(twins, None)
    return placed, doubled


def _squeeze(text: str) -> str:
    return " ".join(text.replace("<image>", " ").split())
