"""GQA testdev_balanced: questions about scene graphs, one short answer each.

Rule (the official eval.py): the prediction (LLaVA's text in lower case without final periods) must equal the
answer. Accuracy is computed over balanced questions: all, binary, open, and per structural and semantic type,
reasoning steps and words. Consistency, validity, plausibility, distribution and grounding
need choices, scene graphs, attentions, or predictions for the entailed questions; without them they are "not
available" (the original printed 0).

Files in the root, data/, data/questions/ or questions/: <split>_questions.json, and optionally
<split>_choices.json, <split>_sceneGraphs.json and <split>_attentions.json (all also without "_balanced").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.benchmarks import aggregate, gqa_metrics
from llava.benchmarks.answers import format_ids, match
from llava.benchmarks.base import Benchmark, Evaluation, Task, find
from llava.benchmarks.records import index_records, read_json_records, require_id
from llava.errors import AnswersError, DataError
from llava.files import atomic_write
from llava.prompts.wording import SHORT_SUFFIX
from llava.schema import Answer, JsonObject, Question, Score, Scores, Verdict

SOURCE = "GQA eval.py (official), predictions as in LLaVA v1.2.2 scripts/convert_gqa_for_eval.py"
FOLDERS = ("", "data/", "data/questions/", "questions/")
SKIPPED_STEPS = ("exist", "query: name", "choose name")


@dataclass(frozen=True, slots=True)
class GqaTruth:
    """The ground truth: the questions, and the inputs of the further metrics that exist."""

    questions: gqa_metrics.Questions
    choices: gqa_metrics.Choices | None
    scene_graphs: gqa_metrics.SceneGraphs | None
    attentions: gqa_metrics.Attentions | None


def to_prediction(text: str) -> str:
    """Return the prediction that LLaVA gives the evaluator for the answer `text`."""
    return text.rstrip(".").lower()


def read_gqa_truth(root: Path, split: str, path: Path | None = None) -> GqaTruth:
    """Read all inputs of the official evaluator except the predictions.

    `path` is the questions file, by default that of `split`. The others are looked for beside it under the
    same name: `x_choices.json`, `x_sceneGraphs.json` and `x_attentions.json` beside `x_questions.json`.
    """
    path = path or _find(root, split, "questions")
    if path is None:
        raise DataError(
            f"{root}: no {split}_questions.json here or in data/; GQA cannot be scored without it",
            code="missing-file",
        )
    prefix = path.name.removesuffix("questions.json")
    choices, scene_graphs, attentions = (
        find(path.parent, f"{prefix}{what}.json") or _find(root, split, what)
        for what in ("choices", "sceneGraphs", "attentions")
    )
    return GqaTruth(
        questions=_read_object(path),
        choices=_read_object(choices) if choices else None,
        scene_graphs=_read_object(scene_graphs) if scene_graphs else None,
        attentions=_read_attentions(attentions) if attentions else None,
    )


def _find(root: Path, split: str, what: str) -> Path | None:
    names = (f"{split}_{what}.json", f"{split.removesuffix('_balanced')}_{what}.json")
    return find(root, *(f"{folder}{name}" for folder in FOLDERS for name in names))


def _read_attentions(path: Path) -> gqa_metrics.Attentions:
    value = read_json_records(path)
    if isinstance(value, list):
        by_id = index_records(path, value, "questionId")
        value = {key: row["attention"] for key, row in by_id.items()}
    return gqa_metrics.parse_attentions(value, str(path))


def _read_object(path: Path) -> JsonObject:
    value = read_json_records(path)
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: found {type(value).__name__}, wanted a JSON object by question id", code="not-an-object"
        )
    for key in value:
        require_id(key, str(path))
    return value


def _build(root: Path, split: str) -> list[Question]:
    truth = read_gqa_truth(root, split)
    return [
        Question(identifier, f"{row['question']}\n{SHORT_SUFFIX}", f"{row['imageId']}.jpg")
        for identifier, row in truth.questions.items()
        if row["isBalanced"]
    ]


def _judge(task: Task) -> Scores:
    truth = read_gqa_truth(task.root, task.split, task.truth)
    balanced = {key: row for key, row in truth.questions.items() if row["isBalanced"]}
    unbalanced = {key for key in truth.questions if key not in balanced}
    answers = [answer for answer in task.answers if str(answer.question_id) not in unbalanced]
    questions = [Question(key, f"{row['question']}\n{SHORT_SUFFIX}") for key, row in balanced.items()]
    matched = match(questions, answers, allow_missing=task.allow_missing, name="gqa")
    verdicts = [_verdict(key, row, answer) for (key, row), answer in matched.pairs(balanced.items())]
    predictions = {str(verdict.question_id): verdict.answer for verdict in verdicts}
    predictions |= {
        str(answer.question_id): to_prediction(answer.text)
        for answer in task.answers
        if str(answer.question_id) in unbalanced
    }
    asked = {key: row for key, row in truth.questions.items() if key in predictions}
    scores: list[Score] = [
        aggregate.accuracy(verdicts, kind, over={"answer": kind}) for kind in ("binary", "open")
    ]
    scores.append(aggregate.accuracy(verdicts, "accuracy", over={}))
    scores += gqa_metrics.further_metrics(
        asked, predictions, truth.choices, truth.scene_graphs, truth.attentions
    )
    scores += aggregate.accuracy_by(verdicts, names=sorted({v.type for v in verdicts}))
    for facet in ("semantic", "steps", "words"):
        values = {v.facets[facet] for v in verdicts}
        scores += aggregate.accuracy_by(verdicts, facet, names=sorted(values, key=lambda x: (len(x), x)))
    return aggregate.collect("gqa", "accuracy", scores, verdicts, matched, source=SOURCE, split=task.split)


def _verdict(key: str, row: gqa_metrics.GqaQuestion, answer: Answer | None) -> Verdict:
    """Score one question: 1.0 if the prediction, in lower case and without dots at its end, is the truth."""
    prediction = to_prediction(answer.text) if answer else None
    types = row["types"]
    return Verdict(
        question_id=key,
        type=types["structural"],
        score=float(prediction == row["answer"]),
        answer=prediction,
        truth=row["answer"],
        status=aggregate.answer_status(answer, is_parsed=bool(prediction)),
        facets={
            "semantic": types["semantic"],
            "answer": "open" if types["structural"] == "query" else "binary",
            "steps": str(_count_steps(row["semantic"])),
            "words": str(len(row["question"].split())),
        },
        image=f"{row['imageId']}.jpg",
        question=row["question"],
    )


def _count_steps(operations: Sequence[Mapping[str, str]]) -> int:
    texts = [f"{operation['operation']}: {operation['argument']}" for operation in operations]
    return sum(not any(word in text for word in SKIPPED_STEPS) for text in texts)


def write_predictions(answers: Sequence[Answer], path: Path) -> None:
    """Write the evaluator's JSON list of questionId and prediction.

    Raises:
        AnswersError: A question has two different answers.
    """
    texts: dict[str, str] = {}
    conflicts = [a.question_id for a in answers if texts.setdefault(str(a.question_id), a.text) != a.text]
    if conflicts:
        raise AnswersError(
            f"gqa: {len(conflicts)} questions have answers that contradict: {format_ids(conflicts)}",
            code="conflicting-answers",
        )
    rows = [{"questionId": a.question_id, "prediction": to_prediction(a.text)} for a in answers]
    with atomic_write(path) as stream:
        json.dump(rows, stream)


def _submit(task: Task, path: Path) -> None:
    questions = BENCHMARK.read_questions(task.root, task.split)
    match(questions, task.answers, allow_missing=task.allow_missing, name="gqa")
    write_predictions(task.answers, path)


# Source: testdev_balanced of GQA 1.2, as a log of the official eval.py counts it.
SIZES = {
    "accuracy": 12_578, "binary": 5773, "open": 6805,
    "choose": 1129, "compare": 589, "logical": 1803, "query": 6805, "verify": 2252,
    "semantic/attr": 5186, "semantic/cat": 1149, "semantic/global": 157, "semantic/obj": 778,
    "semantic/rel": 5308,
    "steps/1": 237, "steps/2": 6395, "steps/3": 4266, "steps/4": 793, "steps/5": 822, "steps/6": 41,
    "steps/7": 20, "steps/8": 3, "steps/9": 1,
}  # fmt: skip

BENCHMARK = Benchmark(
    name="gqa",
    title="GQA testdev_balanced",
    source=SOURCE,
    folder="gqa",
    question_files={"testdev_balanced": "llava_gqa_testdev_balanced.jsonl"},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(
        images="data/images",
        answers="answers/{file}/{name}",
        merged="answers/{file}/{name}/merge.jsonl",
        submission="answers/{file}/{name}/testdev_balanced_predictions.json",
    ),
    result="accuracy and the rest of the official metrics",
    needs=(tuple(f"{folder}testdev_balanced_questions.json" for folder in FOLDERS), ("data/images/*",)),
    download="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    official_sizes={"testdev_balanced": SIZES},
)
