"""Street: which sign is in the picture? A benchmark in one file, as an example of one."""

from __future__ import annotations

from pathlib import Path

from llava.benchmarks import aggregate
from llava.benchmarks.answers import match
from llava.benchmarks.base import Benchmark, Evaluation, Example, Task, require_file
from llava.benchmarks.records import Record, read_json_records
from llava.files import write_json, write_jsonl
from llava.prompts.wording import SHORT_SUFFIX, with_suffix
from llava.schema import Answer, Question, Scores, Verdict


def _records(root: Path) -> list[Record]:
    path = require_file(root, "signs.json", what="the signs")
    records: list[Record] = read_json_records(path)
    return records


def _build(root: Path, split: str) -> list[Question]:
    return [
        Question(row["id"], with_suffix(row["question"], SHORT_SUFFIX), row["image"], row["kind"])
        for row in _records(root)
    ]


def _judge(task: Task) -> Scores:
    questions = _build(task.root, task.split)
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="street")
    verdicts = []
    for (question, row), answer in matched.pairs(zip(questions, _records(task.root), strict=True)):
        text = answer.text.lower() if answer else None
        verdicts.append(
            Verdict(
                question.id, question.category, float(text == row["answer"]), text, row["answer"],
                status="answered" if answer else "unanswered", image=question.image, question=question.text,
            )
        )  # fmt: skip
    scores = [*aggregate.accuracy_by(verdicts), aggregate.accuracy(verdicts, "accuracy", over={})]
    return aggregate.collect("street", "accuracy", scores, verdicts, matched, source="", split=task.split)


def _submit(task: Task, path: Path) -> None:
    write_jsonl(path, ({"id": answer.question_id, "sign": answer.text} for answer in task.answers))


def _example(root: Path) -> Example:
    row = {"question": "Which sign is it?", "image": "x.jpg", "kind": "sign"}
    write_json(root / "signs.json", [{**row, "id": n, "answer": a} for n, a in enumerate(("a", "stop"))])
    (root / "images").mkdir()
    (root / "images/x.jpg").touch()
    return Example([Answer(0, "", "A"), Answer(1, "", "Stop")])


BENCHMARK = Benchmark(
    name="street", title="Street", source="this file", folder="street", build=_build, judge=_judge,
    submit=_submit, question_files={"test": "llava_street.jsonl"}, submission_suffix=".jsonl",
    evaluation=Evaluation(submission="answers_upload/{name}.jsonl"), needs=(("signs.json",), ("images/*",)),
    download="https://example.org/street", example=_example,
)  # fmt: skip
