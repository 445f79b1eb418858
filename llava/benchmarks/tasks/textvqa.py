"""TextVQA validation 0.5.1: questions about text in images, with the OCR tokens of the image in the prompt.

Rule (LLaVA v1.2.2 eval_textvqa.py with the m4c evaluator): `vqa_answers.normalised_accuracy` against ten
human answers, averaged over questions. Question ids are image ids and repeat, so an answer is matched by
image and by the question text in its prompt. The validation set has no submission; `submit` writes
question_id and normalized answer.

Files in the root: TextVQA_0.5.1_val.json, and TextVQA_Rosetta_OCR_v0.2_val.json to build prompts with OCR
tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

from llava.benchmarks import aggregate
from llava.benchmarks.answers import AllowMissing, Matched, match
from llava.benchmarks.base import Benchmark, Evaluation, Task, require_file, require_keys
from llava.benchmarks.records import read_json_records, require_id
from llava.benchmarks.vqa_answers import normalise, normalised_accuracy
from llava.errors import AnswersError
from llava.files import atomic_write
from llava.prompts.wording import OCR_LINE_START, SHORT_SUFFIX, ocr_line
from llava.schema import Answer, Question, Scores, Verdict

SOURCE = "LLaVA v1.2.2 llava/eval/eval_textvqa.py (m4c evaluator)"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
WITH_OCR = "val"


class Annotation(TypedDict):
    """A row of the official annotations, as far as it is used."""

    question_id: NotRequired[int]
    image_id: str
    question: str
    answers: list[str]


def extract_question(prompt: str) -> str:
    """Return the question inside a prompt, in lower case.

    There are three prompt formats: "OCR tokens: ... Question: Q Short answer:"; question and OCR line (in
    either order) and suffix; question and suffix.

    Raises:
        AnswersError: The prompt has another format.
    """
    if prompt.startswith("OCR tokens: "):
        _, found, rest = prompt.partition("Question: ")
        question, ended, _ = rest.partition(" Short answer:")
        if found and ended:
            return question.lower()
    lines = prompt.split("\n")
    if OCR_LINE_START in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_LINE_START) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise AnswersError(f"textvqa: found no question in the prompt {prompt!r}", code="unknown-prompt")


def read_annotations(path: Path) -> list[Annotation]:
    """Read the official annotations, one row per question."""
    value = read_json_records(path)
    require_keys(value, ["data"], str(path))
    rows: list[Annotation] = value["data"]
    for index, row in enumerate(rows):
        where = f"{path}: question {index}"
        require_id(row["image_id"], where)
        require_id(row.get("question_id", index), where)
    return rows


def _read_ocr_lines(path: Path) -> dict[str, str]:
    value = read_json_records(path)
    require_keys(value, ["data"], str(path))
    return {row["image_id"]: f"{ocr_line(row['ocr_tokens'])}\n" for row in value["data"]}


def _annotations(task: Task) -> list[Annotation]:
    return read_annotations(task.truth or require_file(task.root, ANNOTATIONS, what="TextVQA's annotations"))


def _build(root: Path, split: str) -> list[Question]:
    truth = read_annotations(require_file(root, ANNOTATIONS, what="TextVQA's annotations"))
    ocr_lines: dict[str, str] = {}
    if split == WITH_OCR:
        path = require_file(root, OCR, what="TextVQA's OCR tokens (the split val_no_ocr asks without them)")
        ocr_lines = _read_ocr_lines(path)
    return [
        Question(
            row["image_id"],
            f"{row['question']}\n{_ocr_line(ocr_lines, row['image_id'], split)}{SHORT_SUFFIX}",
            f"{row['image_id']}.jpg",
        )
        for row in truth
    ]


def _ocr_line(ocr_lines: Mapping[str, str], image: str, split: str) -> str:
    return ocr_lines.get(image, f"{ocr_line(())}\n") if split == WITH_OCR else ""


def match_annotations(
    truth: Sequence[Annotation], answers: Sequence[Answer], *, allow_missing: AllowMissing
) -> Matched:
    """Match answers to annotated questions by image id and by the question in the prompt.

    If all answers have TextVQA's own question ids, as other programs write them, they are matched by those.
    """
    numbers = {str(row.get("question_id")) for row in truth}
    by_number = bool(answers) and all(str(answer.question_id) in numbers for answer in answers)
    ids = [row["question_id"] if by_number else row["image_id"] for row in truth]
    questions = [Question(i, row["question"].lower()) for i, row in zip(ids, truth, strict=True)]
    repeated = {str(i) for i, count in Counter(ids).items() if count > 1}
    lowered = [replace(a, prompt=_question_of(a, is_needed=str(a.question_id) in repeated)) for a in answers]
    return match(questions, lowered, allow_missing=allow_missing, name="textvqa")


def _question_of(answer: Answer, *, is_needed: bool) -> str:
    """Return the question in an answer's prompt; "" for another format if the id alone identifies it."""
    try:
        return extract_question(answer.prompt) if answer.prompt else ""
    except AnswersError:
        if is_needed:
            raise
        return ""


def _judge(task: Task) -> Scores:
    truth = _annotations(task)
    matched = match_annotations(truth, task.answers, allow_missing=task.allow_missing)
    verdicts = [_verdict(row, answer) for row, answer in matched.pairs(truth)]
    scores = [aggregate.accuracy(verdicts, "accuracy", over={})]
    return aggregate.collect(
        "textvqa", "accuracy", scores, verdicts, matched, source=SOURCE, split=task.split
    )


def _verdict(row: Annotation, answer: Answer | None) -> Verdict:
    humans = list(row["answers"])
    text = answer.text if answer else None
    return Verdict(
        question_id=row["image_id"],
        type="all",
        score=0.0 if text is None else normalised_accuracy(text, humans),
        answer=text,
        truth=max(humans, key=humans.count),
        status=aggregate.answer_status(answer, is_parsed=bool(text and normalise(text))),
        image=f"{row['image_id']}.jpg",
        question=row["question"],
    )


def _submit(task: Task, path: Path) -> None:
    with atomic_write(path) as stream:
        rows = [{"question_id": a.question_id, "answer": normalise(a.text)} for a in task.answers]
        json.dump(rows, stream)


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA val 0.5.1",
    source=SOURCE,
    folder="textvqa",
    question_files={
        WITH_OCR: "llava_textvqa_val_v051_ocr.jsonl",
        "val_no_ocr": "llava_textvqa_val_v051.jsonl",
    },
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(images="train_images"),
    result="accuracy",
    needs=((ANNOTATIONS,), ("llava_textvqa_val_v051_ocr.jsonl", OCR), ("train_images/*",)),
    download="https://textvqa.org/dataset/",
    # Source: llava_textvqa_val_v051_ocr.jsonl.
    official_sizes={WITH_OCR: {"accuracy": 5000}, "val_no_ocr": {"accuracy": 5000}},
)
