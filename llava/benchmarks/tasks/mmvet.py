"""MM-Vet: open questions that need several abilities at once, graded 0 to 1 by GPT-4.

Rule (MM-Vet's notebook): 100 x the mean grade over questions, over those that need an ability, and over
those that need the same set of abilities; several grading runs are averaged. The grading itself is the paid
judge's: its grade file (`<model>_gpt-4-grade-<n>runs.json`) is what is scored here. For answers without
grades there is no local score, and the judge's input file, {"v1_<id>": text}, is written instead.

Under the root: mm-vet.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.benchmarks import aggregate
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import Benchmark, Evaluation, Task, as_number, require_file
from llava.benchmarks.records import read_records
from llava.errors import AnswersError
from llava.files import atomic_write
from llava.schema import Answer, Question, Score, Scores, Verdict
from llava.scoring.metrics import PERCENT

SOURCE = "MM-Vet evaluator (yuweihao/MM-Vet), from stored grades"
ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
GRADES = "grades"
PREFIX = "v1_"


def read_graded(path: Path) -> list[Answer]:
    """The answers in `path`; those of a grade file carry their grades (a list, one a run) and no text."""
    if path.suffix != ".json":
        return read_answers(path)
    value = read_records(path)
    rows = value.items() if isinstance(value, dict) else []
    graded = [(key, row) for key, row in rows if isinstance(row, dict)]
    if not graded:
        return read_answers(path)
    return [
        Answer(_number(key), "", "", extra={GRADES: _grades(row, f"{path}: {key}")}) for key, row in graded
    ]


def _grades(row: Mapping[str, Any], where: str) -> list[float]:
    grades = row.get("score")
    if not isinstance(grades, list) or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in grades):
        raise AnswersError(f"{where}: score is {grades!r}, wanted a list of grades from 0 to 1")
    return [float(grade) for grade in grades]


def _number(key: str) -> str | int:
    return as_number(str(key).removeprefix(PREFIX))


def _rows(root: Path, truth: Path | None = None) -> dict[str, Mapping[str, Any]]:
    path = truth or require_file(root, "mm-vet.json", what="MM-Vet's questions")
    rows: dict[str, Mapping[str, Any]] = read_records(path)
    return rows


def _build(root: Path, split: str) -> list[Question]:
    return [
        Question(_number(key), row["question"], row["imagename"], "conv") for key, row in _rows(root).items()
    ]


def _judge(task: Task) -> Scores:
    rows = _rows(task.root, task.truth)
    questions = [Question(_number(key), row["question"]) for key, row in rows.items()]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="mmvet")
    graded = [answer for answer in matched.answers if answer and GRADES in answer.extra]
    if not graded:
        why = "needs the judge's grades; score its grade file"
        verdicts = aggregate.unjudged(questions, matched)
        total = [aggregate.not_available("total", why)]
        return aggregate.collect("mmvet", "total", total, verdicts, matched, source=SOURCE, split=task.split)
    runs = {len(answer.extra[GRADES]) for answer in graded}
    if len(runs) > 1:
        raise AnswersError(f"mmvet: some questions have {min(runs)} grades and others {max(runs)}")
    places = zip(rows.items(), matched.answers, strict=True)
    verdicts = [_verdict(key, row, answer) for (key, row), answer in places]
    scores = [
        *aggregate.accuracy_by(verdicts, "abilities"),
        *(aggregate.accuracy(verdicts, name, group="ability", over={name: "yes"}) for name in ABILITIES),
        *(_run(run, matched.answers) for run in range(runs.pop())),
        aggregate.accuracy(verdicts, "total", over={}),
    ]
    return aggregate.collect("mmvet", "total", scores, verdicts, matched, source=SOURCE, split=task.split)


def _run(run: int, answers: Sequence[Answer | None]) -> Score:
    """What one of the judge's runs alone would give."""
    grades = [answer.extra[GRADES][run] if answer else 0.0 for answer in answers]
    units = {str(place): PERCENT * grade for place, grade in enumerate(grades)}
    return aggregate.mean_of_units(
        str(run + 1), units, group="run", value=PERCENT * sum(grades) / len(grades)
    )


def _verdict(key: str, row: Mapping[str, Any], answer: Answer | None) -> Verdict:
    needed = [name for name in ABILITIES if name in row["capability"]]
    together = "_".join(needed)
    return Verdict(
        question_id=_number(key),
        type=together,
        score=fmean(answer.extra[GRADES]) if answer else 0.0,
        answer=answer.text if answer else None,
        truth=row["answer"],
        status="answered" if answer else "unanswered",
        facets={"abilities": together, **dict.fromkeys(needed, "yes")},
        image=row["imagename"],
        question=row["question"],
    )


def write_results(answers: Sequence[Answer], path: Path) -> None:
    """Write the judge's input, {"v1_<id>": text}, as the original does."""
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
)
