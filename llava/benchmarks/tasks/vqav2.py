"""VQAv2: short answers to open questions about COCO images, scored against ten human answers.

Rule (the official vqaEval.py): `vqa_answers.official_accuracy`, averaged over all questions, per answer type
and per question type. LLaVA submits its text normalized by the EvalAI processor, which "overall" scores;
"overall_raw" and the "... (raw)" groups score the text as it is. The test answers are not public, so
test-dev2015 and test2015 have no local score, only the upload. val2014 is scored with
v2_mscoco_val2014_annotations.json.

The server wants an upload with all of test2015, so questions without answer get "".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

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
from llava.benchmarks.records import read_json_records, require_id
from llava.benchmarks.vqa_answers import normalise, official_accuracy
from llava.files import atomic_write
from llava.prompts.wording import SHORT_SUFFIX
from llava.schema import Answer, Question, Score, Scores, Verdict

SOURCE = "VQA vqaEval.py (GT-Vision-Lab); answers processed as LLaVA v1.2.2 submits them"
UPLOADED = "llava_vqav2_mscoco_test2015.jsonl"
# VQA's catch-all types, for annotations without types.
OTHER_ANSWER, OTHER_QUESTION = "other", "none of the above"
SPLITS = ("test-dev2015", "test2015", "val2014")


class VqaAnnotation(TypedDict):
    """An official annotation, as far as it is used."""

    question_id: int
    answers: list[dict[str, str]]
    image_id: NotRequired[int]
    answer_type: NotRequired[str]
    question_type: NotRequired[str]
    multiple_choice_answer: NotRequired[str]


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
            require_id(row["question_id"], f"{path}: question {index}"),
            f"{row['question']}\n{SHORT_SUFFIX}",
            f"COCO_{folder}_{row['image_id']:012d}.jpg",
        )
        for index, row in enumerate(read_json_records(path)["questions"])
    ]


def _read_truth(task: Task) -> list[VqaAnnotation] | None:
    path = task.truth or find(
        task.root,
        f"v2_mscoco_{task.split}_annotations.json",
        f"mscoco_{task.split}_annotations.json",
        "annotations.json",
    )
    if path is None:
        return None
    value = read_json_records(path)
    require_keys(value, ["annotations"], str(path))
    rows: list[VqaAnnotation] = value["annotations"]
    for index, row in enumerate(rows):
        require_id(row["question_id"], f"{path}: annotation {index}")
    return rows


def _judge(task: Task) -> Scores:
    truth = _read_truth(task)
    if truth is None:
        return _collect_unjudged(task)
    questions = [Question(row["question_id"], "") for row in truth]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="vqav2")
    texts = _question_texts(task)
    rows = matched.pairs(truth)
    verdicts = [_verdict(row, answer, texts, as_sent=True) for row, answer in rows]
    raw = [_verdict(row, answer, texts, as_sent=False) for row, answer in rows]
    scores = [
        *aggregate.accuracy_by(verdicts),
        *aggregate.accuracy_by(verdicts, "question type"),
        aggregate.accuracy(verdicts, "overall", over={}),
        replace(aggregate.accuracy(raw, "overall_raw", over={}), over=None),
        *_mark_raw(aggregate.accuracy_by(raw), "answer type (raw)"),
        *_mark_raw(aggregate.accuracy_by(raw, "question type"), "question type (raw)"),
    ]
    return aggregate.collect("vqav2", "overall", scores, verdicts, matched, source=SOURCE, split=task.split)


def _mark_raw(scores: Sequence[Score], group: str) -> list[Score]:
    """Name the scores of the raw text and drop `over`, because the stored verdicts are not theirs."""
    return [replace(score, group=group, over=None) for score in scores]


def _collect_unjudged(task: Task) -> Scores:
    questions = BENCHMARK.read_questions(task.root, task.split)
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="vqav2")
    why = f"only the server (eval.ai) has the answers of {task.split}"
    return aggregate.collect_unjudged(
        "vqav2", "overall", why, questions, matched, source=SOURCE, split=task.split
    )


def _question_texts(task: Task) -> Mapping[str, str]:
    """Return the question texts for the verdicts, if there is a question file."""
    path = BENCHMARK.question_path(task.root, task.split)
    return {str(q.id): q.text for q in read_jsonl_questions(path)} if path.is_file() else {}


def _verdict(
    row: VqaAnnotation, answer: Answer | None, texts: Mapping[str, str], *, as_sent: bool
) -> Verdict:
    humans = [human["answer"] for human in row["answers"]]
    text = None if answer is None else normalise(answer.text) if as_sent else answer.text
    return Verdict(
        question_id=row["question_id"],
        type=row.get("answer_type", OTHER_ANSWER),
        score=0.0 if text is None else official_accuracy(text, humans),
        answer=answer.text if answer else None,
        truth=row.get("multiple_choice_answer", humans[0]),
        status=aggregate.answer_status(answer, is_parsed=bool(text)),
        facets={"question type": row.get("question_type", OTHER_QUESTION)},
        image=str(row["image_id"]) if "image_id" in row else None,
        question=texts.get(str(row["question_id"]), ""),
    )


def write_vqav2_upload(questions: Sequence[Question], answers: Sequence[Answer], path: Path) -> Matched:
    """Write EvalAI's JSON list of question_id and normalized answer, "" if there is no answer."""
    matched = match(questions, answers, allow_missing=True, name="vqav2")
    rows = [
        {"question_id": question.id, "answer": normalise(answer.text) if answer else ""}
        for question, answer in zip(questions, matched.answers, strict=True)
    ]
    with atomic_write(path) as stream:
        json.dump(rows, stream)
    return matched


def _submit(task: Task, path: Path) -> None:
    questions = BENCHMARK.read_questions(task.root, task.split)
    match(questions, task.answers, allow_missing=task.allow_missing, name="vqav2")
    uploaded = task.root / UPLOADED
    if task.split.startswith("test") and uploaded.is_file():
        questions = read_jsonl_questions(uploaded, ["question_id"])
    write_vqav2_upload(questions, task.answers, path)


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
    # Source: visualqa.org/download.html (VQA v2.0), which gives no sizes of answer and question types.
    official_sizes={
        "test-dev2015": {"overall": 107_394},
        "test2015": {"overall": 447_793},
        "val2014": {"overall": 214_354, "overall_raw": 214_354},
    },
)
