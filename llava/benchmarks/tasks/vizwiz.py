"""VizWiz: questions of blind people about photos they took; many cannot be answered.

Only the server has the answers of the test split; the upload is a JSON list of image and answer, normalized
by the EvalAI processor. The validation split (val.json) is scored by the VQA rule, as in VizWiz's own
evaluator, over all questions and per answer type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from llava.benchmarks import aggregate
from llava.benchmarks.answers import AllowMissing, match
from llava.benchmarks.base import Benchmark, Evaluation, Task, require_file
from llava.benchmarks.records import index_records, read_json_records
from llava.benchmarks.vqa_answers import normalise, official_accuracy
from llava.files import atomic_write
from llava.prompts.wording import SHORT_SUFFIX, UNANSWERABLE_LINE
from llava.schema import Answer, Question, Scores, Verdict

SOURCE = "LLaVA v1.2.2 scripts/convert_vizwiz_for_submission.py; val by the VQA rule"


class VizwizRow(TypedDict):
    """A row of the official files, as far as it is used."""

    image: str
    question: str
    answers: NotRequired[list[dict[str, str]]]
    answer_type: NotRequired[str]


def _read_official(root: Path, split: str) -> list[VizwizRow]:
    path = require_file(root, f"{split}.json", f"Annotations/{split}.json", what=f"VizWiz's {split}.json")
    rows: list[VizwizRow] = read_json_records(path)
    return rows


def _build(root: Path, split: str) -> list[Question]:
    return [
        Question(number, f"{row['question']}\n{UNANSWERABLE_LINE}\n{SHORT_SUFFIX}", row["image"])
        for number, row in enumerate(_read_official(root, split))
    ]


def _judge(task: Task) -> Scores:
    questions = BENCHMARK.read_questions(task.root, task.split)
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="vizwiz")
    if task.split == "test" and task.truth is None:
        why = "only the server (eval.ai) has the answers of test"
        return aggregate.collect_unjudged(
            "vizwiz", "overall", why, questions, matched, source=SOURCE, split=task.split
        )
    rows = read_json_records(task.truth) if task.truth else _read_official(task.root, task.split)
    truth: dict[str, VizwizRow] = index_records(task.truth or task.root, rows, "image")
    verdicts = [_verdict(q, truth[str(q.image)], a) for q, a in matched.pairs(questions)]
    scores = [*aggregate.accuracy_by(verdicts), aggregate.accuracy(verdicts, "overall", over={})]
    return aggregate.collect("vizwiz", "overall", scores, verdicts, matched, source=SOURCE, split=task.split)


def _verdict(question: Question, row: VizwizRow, answer: Answer | None) -> Verdict:
    humans = [human["answer"] for human in row["answers"]]
    text = normalise(answer.text) if answer else None
    return Verdict(
        question_id=question.id,
        type=row.get("answer_type", "all"),
        score=0.0 if text is None else official_accuracy(text, humans),
        answer=answer.text if answer else None,
        truth=max(humans, key=humans.count),
        status=aggregate.answer_status(answer, is_parsed=bool(text)),
        image=question.image,
        question=question.text,
    )


def write_vizwiz_upload(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    path: Path,
    *,
    allow_missing: AllowMissing = False,
) -> None:
    """Write the server's JSON list of image and normalized answer, in the order of the questions."""
    matched = match(questions, answers, allow_missing=allow_missing, name="vizwiz")
    rows = [
        {"image": question.image, "answer": normalise(answer.text)}
        for question, answer in zip(questions, matched.answers, strict=True)
        if answer
    ]
    with atomic_write(path) as stream:
        json.dump(rows, stream)


def _submit(task: Task, path: Path) -> None:
    questions = BENCHMARK.read_questions(task.root, task.split)
    write_vizwiz_upload(questions, task.answers, path, allow_missing=task.allow_missing)


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    source=SOURCE,
    folder="vizwiz",
    question_files={"test": "llava_test.jsonl", "val": "llava_val.jsonl"},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(images="test", submission="answers_upload/{name}.json", is_scored=False),
    evaluation_of={
        "val": Evaluation(
            images="val",
            answers="answers/{file}/{name}",
            merged="answers/{file}/{name}.jsonl",
            submission="answers_upload/{file}/{name}.json",
        )
    },
    result="submission for EvalAI; val (VIZWIZ_SPLIT=llava_val) is scored",
    needs=(("llava_test.jsonl", "test.json", "Annotations/test.json"), ("test/*",)),
    needs_of={"val": (("val.json", "Annotations/val.json"), ("val/*",))},
    download="https://vizwiz.org/tasks-and-datasets/vqa/",
    # Source: llava_test.jsonl; for val, the site above.
    official_sizes={"test": {"overall": 8000}, "val": {"overall": 4319}},
)
