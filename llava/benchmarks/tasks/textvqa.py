"""TextVQA validation 0.5.1: questions about text in images, with the OCR tokens of the image in the prompt.

Rule (LLaVA v1.2.2 eval_textvqa.py over the m4c evaluator): `_vqa_answers.normalised_accuracy` against ten
people's answers, averaged over questions. A question id is an image id and repeats, so an answer finds its
question by the image and the question text inside its prompt. There is no submission for the validation set;
`submit` writes question_id and processed answer.

Under the root: TextVQA_0.5.1_val.json, and to build prompts with OCR tokens
TextVQA_Rosetta_OCR_v0.2_val.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.benchmarks import aggregate
from llava.benchmarks.answers import Matched, match
from llava.benchmarks.base import Benchmark, Evaluation, Task, require_file, require_keys
from llava.benchmarks.records import read_records
from llava.benchmarks.vqa_answers import normalise, normalised_accuracy
from llava.errors import AnswersError
from llava.files import atomic_write
from llava.prompts.wording import OCR_LINE_START, SHORT_SUFFIX, ocr_line
from llava.schema import Answer, Question, Scores, Verdict

SOURCE = "LLaVA v1.2.2 llava/eval/eval_textvqa.py (m4c evaluator)"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
WITH_OCR = "val"


def extract_question(prompt: str) -> str:
    """The question inside a prompt, in lower case.

    Three shapes: "OCR tokens: ... Question: Q Short answer:"; question, OCR line and suffix in either order
    of the first two; question and suffix.

    Raises:
        AnswersError: The prompt has none of them.
    """
    if prompt.startswith("OCR tokens: "):
        _, found, rest = prompt.partition("Question: ")
        question, closed, _ = rest.partition(" Short answer:")
        if found and closed:
            return question.lower()
    lines = prompt.split("\n")
    if OCR_LINE_START in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_LINE_START) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise AnswersError(f"textvqa: there is no question to be found in the prompt {prompt!r}")


def read_annotations(path: Path) -> list[Mapping[str, Any]]:
    """The official annotations, a row a question."""
    value = read_records(path)
    require_keys(value, ["data"], str(path))
    rows: list[Mapping[str, Any]] = value["data"]
    return rows


def _annotations(task: Task) -> list[Mapping[str, Any]]:
    return read_annotations(task.truth or require_file(task.root, ANNOTATIONS, what="TextVQA's annotations"))


def _build(root: Path, split: str) -> list[Question]:
    truth = read_annotations(require_file(root, ANNOTATIONS, what="TextVQA's annotations"))
    tokens: dict[str, str] = {}
    if split == WITH_OCR:
        path = require_file(root, OCR, what="TextVQA's OCR tokens (the split val_no_ocr asks without them)")
        tokens = {row["image_id"]: f"{ocr_line(row['ocr_tokens'])}\n" for row in read_annotations(path)}
    return [
        Question(
            row["image_id"],
            f"{row['question']}\n{_ocr_line(tokens, row['image_id'], split)}{SHORT_SUFFIX}",
            f"{row['image_id']}.jpg",
        )
        for row in truth
    ]


def _ocr_line(tokens: Mapping[str, str], image: str, split: str) -> str:
    return tokens.get(image, f"{ocr_line(())}\n") if split == WITH_OCR else ""


def match_annotations(
    truth: Sequence[Mapping[str, Any]], answers: Sequence[Answer], *, allow_missing: bool
) -> Matched:
    """Each annotated question's answer, found by image id and the question in the prompt.

    Answers that carry TextVQA's own question numbers, as other programs write them, are found by those.
    """
    numbers = {str(row.get("question_id")) for row in truth}
    by_number = bool(answers) and all(str(answer.question_id) in numbers for answer in answers)
    ids = [row["question_id" if by_number else "image_id"] for row in truth]
    questions = [Question(i, row["question"].lower()) for i, row in zip(ids, truth, strict=True)]
    repeated = {str(i) for i, count in Counter(ids).items() if count > 1}
    asked = [replace(a, prompt=_asked(a, is_needed=str(a.question_id) in repeated)) for a in answers]
    return match(questions, asked, allow_missing=allow_missing, name="textvqa")


def _asked(answer: Answer, *, is_needed: bool) -> str:
    """The question in an answer's prompt; a prompt of any other shape will do where the id says it all."""
    try:
        return extract_question(answer.prompt) if answer.prompt else ""
    except AnswersError:
        if is_needed:
            raise
        return ""


def _judge(task: Task) -> Scores:
    truth = _annotations(task)
    matched = match_annotations(truth, task.answers, allow_missing=task.allow_missing)
    verdicts = [_verdict(row, answer) for row, answer in zip(truth, matched.answers, strict=True)]
    scores = [aggregate.accuracy(verdicts, "accuracy", over={})]
    return aggregate.collect(
        "textvqa", "accuracy", scores, verdicts, matched, source=SOURCE, split=task.split
    )


def _verdict(row: Mapping[str, Any], answer: Answer | None) -> Verdict:
    humans = list(row["answers"])
    said = answer.text if answer else None
    return Verdict(
        question_id=row["image_id"],
        type="all",
        score=0.0 if said is None else normalised_accuracy(said, humans),
        answer=said,
        truth=max(humans, key=humans.count),
        status="unanswered" if said is None else "answered" if normalise(said) else "unparsable",
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
)
