"""MM-Vet: open questions that need several abilities at once, graded 0 to 1 by GPT-4.

Rule (MM-Vet's notebook): 100 x the mean grade, over all questions, per ability, and per set of abilities;
several grading runs are averaged. A paid judge does the grading; its grade file
(`<model>_gpt-4-grade-<n>runs.json`) is scored here. Answers without grades have no local score; the judge's
input file, {"v1_<id>": text}, is written instead.

File in the root: mm-vet.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypedDict

from llava.benchmarks import aggregate
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import Benchmark, Evaluation, Task, as_number, require_file
from llava.benchmarks.records import is_number, read_json_records, require_id
from llava.errors import AnswersError
from llava.files import atomic_write
from llava.schema import Answer, Question, Score, Scores, Verdict
from llava.scoring.metrics import PERCENT

SOURCE = "MM-Vet evaluator (yuweihao/MM-Vet), from stored grades"
ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
GRADES = "grades"
PREFIX = "v1_"


class MmvetRow(TypedDict):
    """A row of mm-vet.json, as far as it is used."""

    question: str
    answer: str
    imagename: str
    capability: list[str]


def read_graded(path: Path) -> list[Answer]:
    """Read the answers in `path`; those of a grade file have grades (one per run) and no text."""
    if path.suffix != ".json":
        return read_answers(path)
    value = read_json_records(path)
    rows = value.items() if isinstance(value, dict) else []
    graded = [(key, row) for key, row in rows if isinstance(row, dict)]
    if not graded:
        return read_answers(path)
    return [
        Answer(_parse_id(key), "", "", extra={GRADES: _grades(row, f"{path}: {key}")}) for key, row in graded
    ]


def _grades(row: Mapping[str, object], where: str) -> list[float]:
    grades = row.get("score")
    if not isinstance(grades, list) or not all(is_number(x) and 0 <= x <= 1 for x in grades):
        raise AnswersError(
            f"{where}: score is {grades!r}, wanted a list of grades from 0 to 1", code="wrong-grades"
        )
    return [float(grade) for grade in grades]


def _parse_id(key: str) -> str | int:
    return require_id(as_number(key.removeprefix(PREFIX)), f"mmvet: {key!r}")


def _read_rows(root: Path, truth: Path | None = None) -> dict[str, MmvetRow]:
    path = truth or require_file(root, "mm-vet.json", what="MM-Vet's questions")
    rows: dict[str, MmvetRow] = read_json_records(path)
    return rows


def _build(root: Path, split: str) -> list[Question]:
    return [
        Question(_parse_id(key), row["question"], row["imagename"], "conv")
        for key, row in _read_rows(root).items()
    ]


def _judge(task: Task) -> Scores:
    rows = _read_rows(task.root, task.truth)
    questions = [Question(_parse_id(key), row["question"]) for key, row in rows.items()]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="mmvet")
    graded = [answer for answer in matched.answers if answer and GRADES in answer.extra]
    if not graded:
        why = "needs the judge's grades; score its grade file"
        return aggregate.collect_unjudged(
            "mmvet", "total", why, questions, matched, source=SOURCE, split=task.split
        )
    runs = {len(answer.extra[GRADES]) for answer in graded}
    if len(runs) > 1:
        raise AnswersError(
            f"mmvet: some questions have {min(runs)} grades and others {max(runs)}", code="wrong-grades"
        )
    pairs = zip(rows.items(), matched.answers, strict=True)
    verdicts = [_verdict(key, row, answer) for (key, row), answer in pairs]
    scores = [
        *aggregate.accuracy_by(verdicts, "abilities"),
        *(aggregate.accuracy(verdicts, name, group="ability", over={name: "yes"}) for name in ABILITIES),
        *(_run_score(run, questions, matched.answers) for run in range(runs.pop())),
        aggregate.accuracy(verdicts, "total", over={}),
    ]
    return aggregate.collect("mmvet", "total", scores, verdicts, matched, source=SOURCE, split=task.split)


def _run_score(run: int, questions: Sequence[Question], answers: Sequence[Answer | None]) -> Score:
    """Return the total score of one grading run."""
    grades = [answer.extra[GRADES][run] if answer else 0.0 for answer in answers]
    units = {str(q.id): PERCENT * grade for q, grade in zip(questions, grades, strict=True)}
    return aggregate.mean_of_units(
        str(run + 1), units, group="run", value=PERCENT * sum(grades) / len(grades)
    )


def _verdict(key: str, row: MmvetRow, answer: Answer | None) -> Verdict:
    needed = [name for name in ABILITIES if name in row["capability"]]
    abilities = "_".join(needed)
    return Verdict(
        question_id=_parse_id(key),
        type=abilities,
        score=fmean(answer.extra[GRADES]) if answer else 0.0,
        answer=None,
        truth=row["answer"],
        status="answered" if answer else "unanswered",
        facets={"abilities": abilities, **dict.fromkeys(needed, "yes")},
        image=row["imagename"],
        question=row["question"],
    )


def write_results(answers: Sequence[Answer], path: Path) -> None:
    """Write the judge's input, {"v1_<id>": text}."""
    with atomic_write(path) as stream:
        json.dump({f"{PREFIX}{answer.question_id}": answer.text for answer in answers}, stream, indent=2)


def _submit(task: Task, path: Path) -> None:
    questions = BENCHMARK.read_questions(task.root, task.split)
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="mmvet")
    write_results([answer for answer in matched.answers if answer], path)


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    source=SOURCE,
    folder="mm-vet",
    question_files={"test": "llava-mm-vet.jsonl"},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(
        max_new_tokens=1024,
        submission="results/{name}.json",
        grades=("results/{name}_gpt-*-grade-*runs.json",),
    ),
    result="the judge's input; its grades (results/NAME_gpt-4-grade-1runs.json), once there, are scored",
    answers_from=read_graded,
    needs=(("llava-mm-vet.jsonl", "mm-vet.json"), ("images/*",)),
    download="https://github.com/yuweihao/MM-Vet",
    # Source: mm-vet.json.
    official_sizes={
        "test": {
            "total": 218,
            "ability/rec": 150,
            "ability/ocr": 96,
            "ability/know": 84,
            "ability/gen": 80,
            "ability/spat": 75,
            "ability/math": 26,
        }
    },
)
