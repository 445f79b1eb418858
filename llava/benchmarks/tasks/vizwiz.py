"""VizWiz: questions that blind people asked about photos they took; many cannot be answered.

The test answers are on the server only: the upload is a JSON list of image and answer, put through the
EvalAI processor. The validation answers are public (val.json) and are scored by the VQA rule, as VizWiz's
own evaluator does, over all questions and per answer type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.benchmarks import aggregate
from llava.benchmarks.answers import match
from llava.benchmarks.base import Benchmark, Evaluation, Task, require_file, require_keys
from llava.benchmarks.records import index_records, read_record_lines, read_records
from llava.benchmarks.vqa_answers import normalise, official_accuracy
from llava.files import atomic_write
from llava.prompts.wording import SHORT_SUFFIX, UNANSWERABLE_LINE
from llava.schema import Answer, Question, Scores, Verdict

SOURCE = "LLaVA v1.2.2 scripts/convert_vizwiz_for_submission.py; val by the VQA rule"


def _official(root: Path, split: str) -> list[Mapping[str, Any]]:
    path = require_file(root, f"{split}.json", f"Annotations/{split}.json", what=f"VizWiz's {split}.json")
    rows: list[Mapping[str, Any]] = read_records(path)
    return rows


def _build(root: Path, split: str) -> list[Question]:
    return [
        Question(number, f"{row['question']}\n{UNANSWERABLE_LINE}\n{SHORT_SUFFIX}", row["image"])
        for number, row in enumerate(_official(root, split))
    ]


def _judge(task: Task) -> Scores:
    asked = BENCHMARK.read_questions(task.root, task.split)
    matched = match(asked, task.answers, allow_missing=task.allow_missing, name="vizwiz")
    if task.split == "test" and task.truth is None:
        why = "the answers of test are on the server (eval.ai) only"
        scores = [aggregate.not_available("overall", why)]
        verdicts = aggregate.unjudged(asked, matched)
    else:
        rows = read_records(task.truth) if task.truth else _official(task.root, task.split)
        truth = index_records(task.truth or task.root, rows, "image")
        verdicts = [_verdict(q, truth[str(q.image)], a) for q, a in zip(asked, matched.answers, strict=True)]
        scores = [*aggregate.accuracy_by(verdicts), aggregate.accuracy(verdicts, "overall", over={})]
    return aggregate.collect("vizwiz", "overall", scores, verdicts, matched, source=SOURCE, split=task.split)


def _verdict(question: Question, row: Mapping[str, Any], answer: Answer | None) -> Verdict:
    humans = [human["answer"] for human in row["answers"]]
    said = normalise(answer.text) if answer else None
    return Verdict(
        question_id=question.id,
        type=row.get("answer_type", "all"),
        score=0.0 if said is None else official_accuracy(said, humans),
        answer=answer.text if answer else None,
        truth=max(humans, key=humans.count),
        status="unanswered" if answer is None else "answered" if said else "unparsable",
        image=question.image,
        question=question.text,
    )


def read_image_questions(path: Path) -> list[Question]:
    """The questions of LLaVA's file, of which id and image count."""
    questions = []
    for line, row in read_record_lines(path):
        require_keys(row, ("question_id", "image"), f"{path}:{line}")
        questions.append(Question(row["question_id"], row.get("text", ""), row["image"]))
    return questions


def write_vizwiz_upload(
    questions: Sequence[Question], answers: Sequence[Answer], path: Path, *, allow_missing: bool = False
) -> None:
    """Write the server's JSON list of image and processed answer, in the questions' order."""
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
)
