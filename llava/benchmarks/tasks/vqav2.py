"""VQAv2: short answers to open questions about COCO images, scored against ten people's answers.

Rule (the official vqaEval.py): `_vqa_answers.official_accuracy`, averaged over questions, per answer type
and per question type. What LLaVA sends in is its text put through the EvalAI processor, so "overall" judges
that; "overall_raw" and the "... (raw)" groups judge the text as it is. Test answers are not public: for
test-dev2015 and test2015 there is no local score, only the upload; val2014 is scored from
v2_mscoco_val2014_annotations.json.

The upload covers all of test2015 whatever was asked (a server's demand), with "" where there is no answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.benchmarks import aggregate
from llava.benchmarks.answers import Matched, match
from llava.benchmarks.base import (
    Benchmark,
    Evaluation,
    Task,
    find,
    read_jsonl_questions,
    require_file,
    require_keys,
)
from llava.benchmarks.records import read_record_lines, read_records
from llava.benchmarks.vqa_answers import normalise, official_accuracy
from llava.files import atomic_write
from llava.prompts.wording import SHORT_SUFFIX
from llava.schema import Answer, Question, Score, Scores, Verdict

SOURCE = "VQA vqaEval.py (GT-Vision-Lab); answers processed as LLaVA v1.2.2 submits them"
UPLOADED = "llava_vqav2_mscoco_test2015.jsonl"
# VQA's own catch-all types, for annotations that name none.
OTHER_ANSWER, OTHER_QUESTION = "other", "none of the above"
SPLITS = ("test-dev2015", "test2015", "val2014")


def _build(root: Path, split: str) -> list[Question]:
    path = require_file(
        root,
        f"v2_OpenEnded_mscoco_{split}_questions.json",
        f"OpenEnded_mscoco_{split}_questions.json",
        what=f"the official questions of {split}",
    )
    folder = "test2015" if split.startswith("test") else split
    return [
        Question(
            row["question_id"],
            f"{row['question']}\n{SHORT_SUFFIX}",
            f"COCO_{folder}_{row['image_id']:012d}.jpg",
        )
        for row in read_records(path)["questions"]
    ]


def _truth(task: Task) -> list[dict[str, Any]] | None:
    path = task.truth or find(
        task.root,
        f"v2_mscoco_{task.split}_annotations.json",
        f"mscoco_{task.split}_annotations.json",
        "annotations.json",
    )
    if path is None:
        return None
    value = read_records(path)
    require_keys(value, ["annotations"], str(path))
    rows: list[dict[str, Any]] = value["annotations"]
    return rows


def _judge(task: Task) -> Scores:
    truth = _truth(task)
    if truth is None:
        return _server_only(task)
    questions = [Question(row["question_id"], "") for row in truth]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="vqav2")
    texts = _texts(task)
    rows = list(zip(truth, matched.answers, strict=True))
    verdicts = [_verdict(row, answer, texts, as_sent=True) for row, answer in rows]
    raw = [_verdict(row, answer, texts, as_sent=False) for row, answer in rows]
    scores = [
        *aggregate.accuracy_by(verdicts),
        *aggregate.accuracy_by(verdicts, "question type"),
        aggregate.accuracy(verdicts, "overall", over={}),
        replace(aggregate.accuracy(raw, "overall_raw", over={}), over=None),
        *_raw(aggregate.accuracy_by(raw), "answer type (raw)"),
        *_raw(aggregate.accuracy_by(raw, "question type"), "question type (raw)"),
    ]
    return aggregate.collect("vqav2", "overall", scores, verdicts, matched, source=SOURCE, split=task.split)


def _raw(scores: Sequence[Score], group: str) -> list[Score]:
    """Scores of the unprocessed text: the verdicts in the file are not theirs, so nothing pairs with them."""
    return [replace(score, group=group, over=None) for score in scores]


def _server_only(task: Task) -> Scores:
    asked = BENCHMARK.read_questions(task.root, task.split)
    matched = match(asked, task.answers, allow_missing=task.allow_missing, name="vqav2")
    why = f"the answers of {task.split} are on the server (eval.ai) only"
    return aggregate.collect(
        "vqav2", "overall", [aggregate.not_available("overall", why)],
        aggregate.unjudged(asked, matched), matched, source=SOURCE, split=task.split,
    )  # fmt: skip


def _texts(task: Task) -> Mapping[str, str]:
    """Question texts for the verdicts, where the question file is there."""
    path = BENCHMARK.question_path(task.root, task.split)
    return {str(q.id): q.text for q in read_jsonl_questions(path)} if path.is_file() else {}


def _verdict(
    row: Mapping[str, Any], answer: Answer | None, texts: Mapping[str, str], *, as_sent: bool
) -> Verdict:
    humans = [human["answer"] for human in row["answers"]]
    said = None if answer is None else normalise(answer.text) if as_sent else answer.text
    return Verdict(
        question_id=row["question_id"],
        type=row.get("answer_type", OTHER_ANSWER),
        score=0.0 if said is None else official_accuracy(said, humans),
        answer=answer.text if answer else None,
        truth=row.get("multiple_choice_answer", humans[0]),
        status="unanswered" if answer is None else "answered" if said else "unparsable",
        facets={"question type": row.get("question_type", OTHER_QUESTION)},
        image=str(row["image_id"]) if "image_id" in row else None,
        question=texts.get(str(row["question_id"]), ""),
    )


def read_question_ids(path: Path) -> list[Question]:
    """The questions of a question file, of which only the id counts."""
    questions = []
    for line, row in read_record_lines(path):
        require_keys(row, ["question_id"], f"{path}:{line}")
        questions.append(Question(row["question_id"], row.get("text", "")))
    return questions


def write_vqav2_upload(questions: Sequence[Question], answers: Sequence[Answer], path: Path) -> Matched:
    """Write EvalAI's JSON list of question_id and processed answer, "" where there is none."""
    matched = match(questions, answers, allow_missing=True, name="vqav2")
    rows = [
        {"question_id": question.id, "answer": normalise(answer.text) if answer else ""}
        for question, answer in zip(questions, matched.answers, strict=True)
    ]
    with atomic_write(path) as stream:
        json.dump(rows, stream)
    return matched


def _submit(task: Task, path: Path) -> None:
    asked = BENCHMARK.read_questions(task.root, task.split)
    match(asked, task.answers, allow_missing=task.allow_missing, name="vqav2")
    whole = task.root / UPLOADED
    if task.split.startswith("test") and whole.is_file():
        asked = read_question_ids(whole)
    write_vqav2_upload(asked, task.answers, path)


SERVER_SCORED = Evaluation(
    images="test2015",
    answers="answers/{file}/{name}",
    merged="answers/{file}/{name}/merge.jsonl",
    submission="answers_upload/{file}/{name}.json",
    is_scored=False,
    also_prepare=("test2015",),
)

BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    source=SOURCE,
    folder="vqav2",
    question_files={split: f"llava_vqav2_mscoco_{split}.jsonl" for split in SPLITS},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=SERVER_SCORED,
    evaluation_of={"val2014": replace(SERVER_SCORED, images="val2014", is_scored=True, also_prepare=())},
    result="submission for EvalAI; val2014 (VQAV2_SPLIT=llava_vqav2_mscoco_val2014) is scored",
    needs=(
        *(
            (f"llava_vqav2_mscoco_{split}.jsonl", f"*OpenEnded_mscoco_{split}_questions.json")
            for split in SPLITS[:2]
        ),
        ("test2015/*",),
    ),
    needs_of={
        "val2014": (
            ("llava_vqav2_mscoco_val2014.jsonl", "*OpenEnded_mscoco_val2014_questions.json"),
            ("*mscoco_val2014_annotations.json",),
            ("val2014/*",),
        )
    },
    download="https://visualqa.org/download.html; LLaVA's eval.zip has the question files",
)
