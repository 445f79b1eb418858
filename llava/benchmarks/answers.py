"""Read answers files and match each answer to its question.

An answers file has one JSON object per line, or one JSON array of them: LLaVA's rows (`question_id`,
`prompt`, `text`, ...) or rows of a submission (`question_id` or `questionId` with `prediction` or `answer`).
It may also be one JSON object that maps ids to texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from llava.benchmarks.records import read_json_records, read_record_lines, require_id
from llava.errors import AnswersError, shown
from llava.schema import Answer, Question

ID_KEYS = ("question_id", "questionId")
TEXT_KEYS = ("text", "prediction", "answer")
KNOWN_KEYS = {*ID_KEYS, "prompt", "text", "answer_id", "model_id", "metadata"}
SHOWN_IDS = 5

AllowMissing = bool | Literal["left out"]
"""Whether questions may have no answer; they then count as wrong, or are left out of the scores."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Matched:
    """One answer, or None, per question, in the order of the questions.

    Attributes:
        answers: The answers.
        duplicates: How many rows repeat an earlier answer.
        other_prompts: How many answers have a prompt that neither contains the question nor is part of it;
            they may belong to another question.
        by_order: How many answers without prompt share their id with several questions, so that only their
            order identifies the question.
        leaves_out: Whether questions without answer are left out, as they were not asked (`--limit`).
    """

    answers: list[Answer | None]
    duplicates: int
    other_prompts: int
    by_order: int = 0
    leaves_out: bool = False

    @property
    def missing(self) -> int:
        """The number of questions without answer."""
        return sum(answer is None for answer in self.answers)

    def pairs(self, items: Iterable[Item]) -> list[tuple[Item, Answer | None]]:
        """Return what belongs to each question with its answer; without those that are left out."""
        pairs = zip(items, self.answers, strict=True)
        return [pair for pair in pairs if pair[1] is not None or not self.leaves_out]


def read_answers(path: Path) -> list[Answer]:
    """Read the answers in `path`, in the order of the file.

    Raises:
        AnswersError: A row has no id or no text, the answers are of several models, or the file holds
            something else.
        DataError: The file is missing or a line is not JSON.
    """
    rows: Iterable[tuple[str, object]]
    if path.suffix == ".json":
        value = read_json_records(path)
        if isinstance(value, dict):
            value = [{"question_id": key, "text": text} for key, text in value.items()]
        if not isinstance(value, list):
            raise AnswersError(
                f"{path}: found {type(value).__name__}, wanted a list of answers, or an object id -> text",
                code="not-answers",
            )
        rows = ((f"{path}: element {index}", row) for index, row in enumerate(value))
    else:
        rows = ((f"{path}:{line}", row) for line, row in read_record_lines(path))
    answers: list[Answer] = []
    model = ""
    for where, row in rows:
        answer = _answer(row, where)
        model = model or answer.model_id
        if answer.model_id and answer.model_id != model:
            raise AnswersError(
                f"{where}: the answer to {answer.question_id} is of the model {answer.model_id!r}, those "
                f"before it are of {model!r}; score each model's answers on their own",
                code="several-models",
            )
        answers.append(answer)
    return answers


def _answer(row: object, where: str) -> Answer:
    if not isinstance(row, dict):
        raise AnswersError(
            f"{where}: found {type(row).__name__}, wanted an answer (a JSON object)", code="not-answers"
        )
    id_key = next((key for key in ID_KEYS if key in row), None)
    text = next((row[key] for key in TEXT_KEYS if key in row), None)
    prompt = row.get("prompt") or ""
    for found, what in ((text, "text"), (prompt, "prompt")):
        if found is not None and not isinstance(found, str):
            raise AnswersError(
                f"{where}: the {what} is {shown(found)}, a {type(found).__name__}, wanted text",
                code="wrong-type",
            )
    if id_key is None or text is None:
        raise AnswersError(
            f"{where}: found the keys {', '.join(row)}; wanted an id ({' or '.join(ID_KEYS)}) "
            f"and a text ({', '.join(TEXT_KEYS)})",
            code="missing-key",
        )
    return Answer(
        question_id=require_id(row[id_key], where),
        prompt=prompt,
        text=text,
        answer_id=row.get("answer_id", ""),
        model_id=str(row.get("model_id") or ""),
        metadata=row.get("metadata") or {},
        extra={key: value for key, value in row.items() if key not in KNOWN_KEYS},
    )


def match(
    questions: Sequence[Question], answers: Sequence[Answer], *, allow_missing: AllowMissing, name: str
) -> Matched:
    """Match each answer to its question by id; if an id repeats, by prompt, then by order.

    Ids are compared as text (101669 equals "101669"). Repeated identical answers count once. Two questions
    with the same id, text and image may share one answer.

    Args:
        questions: The questions that were asked.
        answers: The answers, in any order.
        allow_missing: Whether a question may have no answer.
        name: The benchmark, for error messages.

    Raises:
        AnswersError: An answer has an unknown id, answers contradict each other, or (without
            `allow_missing`) a question has no answer.
    """
    indices_by_id: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        indices_by_id[str(question.id)].append(index)
    rows_by_id: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        rows_by_id[str(answer.question_id)].append(answer)
    unknown = [key for key in rows_by_id if key not in indices_by_id]
    if unknown:
        raise AnswersError(
            f"{name}: {len(unknown)} answered ids are not among its {len(questions)} questions: "
            f"{format_ids(unknown)}; were the answers made from another question file?",
            code="unknown-questions",
        )
    found: list[Answer | None] = [None] * len(questions)
    duplicates = by_order = 0
    for key, indices in indices_by_id.items():
        rows = rows_by_id.get(key, [])
        if len(indices) == 1:
            found[indices[0]] = rows[0] if rows else None
            duplicates += _count_repeats(rows, key, name)
        elif rows:
            placed, repeats = _match_by_prompt([questions[index] for index in indices], rows, key, name)
            duplicates += repeats
            if len({questions[index].text for index in indices}) > 1:
                by_order += sum(row is not None and not row.prompt for row in placed)
            for index, row in zip(indices, placed, strict=True):
                found[index] = row
    missing = [str(questions[index].id) for index, answer in enumerate(found) if answer is None]
    if missing and not allow_missing:
        raise AnswersError(
            f"{name}: {len(missing)} of {len(questions)} questions have no answer: {format_ids(missing)}; "
            "answer them, or count them as wrong with --allow-missing",
            code="missing-answers",
        )
    other_prompts = sum(
        _has_other_prompt(question.text, answer) for question, answer in zip(questions, found, strict=True)
    )
    return Matched(found, duplicates, other_prompts, by_order, allow_missing == "left out")


def _has_other_prompt(text: str, answer: Answer | None) -> bool:
    if answer is None or not answer.prompt or not text:
        return False
    prompt, question = _squeeze(answer.prompt), _squeeze(text)
    return prompt not in question and question not in prompt


def format_ids(ids: Sequence[object]) -> str:
    """List the first few ids for a message, followed by dots if there are more."""
    return ", ".join(str(item) for item in ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")


def _count_repeats(rows: Sequence[Answer], key: str, name: str) -> int:
    """Return how many rows repeat the first one; AnswersError if their texts differ."""
    if len({row.text for row in rows}) > 1:
        texts = format_ids([repr(row.text) for row in rows])
        raise AnswersError(
            f"{name}: question {key} has {len(rows)} answers that contradict: {texts}",
            code="conflicting-answers",
        )
    return max(0, len(rows) - 1)


def _match_by_prompt(
    questions: Sequence[Question], rows: Sequence[Answer], key: str, name: str
) -> tuple[list[Answer | None], int]:
    """Match `rows` to questions that share an id; return one answer per question and the number of repeats.

    Rows whose prompt fits no question are matched by order.
    """
    wanted = [_squeeze(question.text) for question in questions]
    placed: list[Answer | None] = [None] * len(questions)
    unplaced = []
    repeats = 0
    for row in rows:
        prompt = _squeeze(row.prompt)
        candidates = [slot for slot, text in enumerate(wanted) if prompt and text == prompt]
        free = [slot for slot in candidates if placed[slot] is None]
        if free:
            placed[free[0]] = row
        elif candidates:
            same_prompt = [answer for slot in candidates if (answer := placed[slot])]
            repeats += _count_repeats([row, *same_prompt], key, name) > 0
        else:
            unplaced.append(row)
    free = [slot for slot, answer in enumerate(placed) if answer is None]
    if len(unplaced) == len(free):
        for slot, row in zip(free, unplaced, strict=True):
            placed[slot] = row
    elif unplaced and len(set(wanted)) > 1:
        raise AnswersError(
            f"{name}: {len(questions)} questions share the id {key}, and {len(unplaced)} of its answers "
            f"have prompts that fit none of them: {unplaced[0].prompt!r}",
            code="ambiguous-answers",
        )
    elif unplaced:
        repeats += _count_repeats(unplaced, key, name)
        placed[free[0]] = unplaced[0]
    for slot, answer in enumerate(placed):
        if answer is None:
            twins = (p for other, p in enumerate(placed) if p and wanted[other] == wanted[slot])
            placed[slot] = next(twins, None)
    return placed, repeats


def _squeeze(text: str) -> str:
    return " ".join(text.replace("<image>", " ").split())
