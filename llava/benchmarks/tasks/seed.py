"""SEED-Bench-1: multiple choice about images (nine skills) and video frames (three more).

Rule (LLaVA v1.2.2, convert_seed_for_submission.py): an answer is correct if it equals the letter exactly.
Accuracy is computed per skill and over image, video and all questions. MLLM-DataEngine's scripts ask only the
image questions, so the split "image" scores video questions only if at least one is answered, and else notes
that none is; the headline is "image". One id (49914) occurs twice and is matched by position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.benchmarks import aggregate
from llava.benchmarks.answers import AllowMissing, match
from llava.benchmarks.base import Benchmark, Evaluation, Task, as_number, options_text, require_file
from llava.benchmarks.records import read_json_records, require_id
from llava.errors import DataError
from llava.files import write_jsonl
from llava.prompts.wording import LETTER_SUFFIX
from llava.schema import Answer, Question, Scores, Verdict

SOURCE = "LLaVA v1.2.2 scripts/convert_seed_for_submission.py (exact letter)"
ANNOTATIONS = "SEED-Bench.json"
LETTERS = frozenset("ABCD")
VIDEO_ID = re.compile(r"v\d+")


@dataclass(frozen=True, slots=True)
class SeedItem:
    """One row of SEED-Bench.json: its question, true letter, skill and kind ("image" or "video")."""

    question: Question
    truth: str
    skill_id: int
    skill: str
    kind: str


def read_seed_items(path: Path) -> list[SeedItem]:
    """Read the rows of SEED-Bench.json or a file of the same format.

    Raises:
        DataError: The file or one of its rows is damaged.
    """
    value = read_json_records(path)
    if not isinstance(value, dict) or not {"questions", "question_type"} <= value.keys():
        raise DataError(
            f"{path}: wanted a JSON object with the keys questions and question_type", code="record-shape"
        )
    skills = {number: name for name, number in value["question_type"].items()}
    items = []
    for index, row in enumerate(value["questions"]):
        try:
            number = row["question_type_id"]
            require_id(row["question_id"], f"{path}: question {index}")
            items.append(
                SeedItem(
                    _question(row), row["answer"], number, skills.get(number, str(number)), row["data_type"]
                )
            )
        except KeyError as error:
            raise DataError(f"{path}: question {index} has no key {error}", code="missing-key") from error
        if items[-1].truth not in LETTERS:
            raise DataError(
                f"{path}: question {index} has the answer {row['answer']!r}, wanted A, B, C or D",
                code="wrong-label",
            )
    return items


def _question(row: dict[str, str]) -> Question:
    options = [row[f"choice_{letter}"] for letter in "abcd" if f"choice_{letter}" in row]
    text = options_text(row.get("question", ""), options) + f"\n{LETTER_SUFFIX}"
    if row["data_type"] == "image":
        image = f"SEED-Bench-image/{row.get('data_id', '')}"
    else:
        image = f"SEED-Bench-video-image/{row['question_id']}.png"
    return Question(as_number(str(row["question_id"])), text, image)


def select_asked(
    items: Sequence[SeedItem], answers: Sequence[Answer], *, split: str = "image"
) -> list[SeedItem]:
    """Return the image questions, and also the video questions if `split` or an answer is about them."""
    videos = {str(item.question.id) for item in items if item.kind != "image"}
    if split == "all" or not videos or any(str(answer.question_id) in videos for answer in answers):
        return list(items)
    return [item for item in items if item.kind == "image"]


def drop_unknown_videos(items: Sequence[SeedItem], answers: Sequence[Answer]) -> list[Answer]:
    """Return `answers` without those to video questions ("v12") that are not among `items`.

    Annotations are often reduced to image questions or to known answers, while an upload has all questions.
    """
    known = {str(item.question.id) for item in items}
    return [
        answer
        for answer in answers
        if str(answer.question_id) in known or not VIDEO_ID.fullmatch(str(answer.question_id))
    ]


def judge_items(
    items: Sequence[SeedItem],
    answers: Sequence[Answer],
    *,
    allow_missing: AllowMissing,
    split: str = "image",
    left_out: int = 0,
) -> Scores:
    """Score `answers` against the asked `items`.

    Notes count the answers to unknown video questions, and the `left_out` video questions without answer.
    """
    kept = drop_unknown_videos(items, answers)
    matched = match([item.question for item in items], kept, allow_missing=allow_missing, name="seed")
    verdicts = [_verdict(item, answer) for item, answer in matched.pairs(items)]
    skills = {item.skill_id: item.skill for item in items}
    kinds = [kind for kind in ("image", "video") if any(item.kind == kind for item in items)]
    scores = [
        *aggregate.accuracy_by(verdicts, names=[skills[number] for number in sorted(skills)]),
        *(aggregate.accuracy(verdicts, kind, over={"kind": kind}) for kind in kinds),
        *([aggregate.accuracy(verdicts, "total", over={})] if len(kinds) > 1 else []),
    ]
    headline = kinds[0] if kinds else "total"
    dropped = len(answers) - len(kept)
    notes = []
    if dropped:
        notes.append(f"{dropped} answers to video questions that are not in the annotations are left out")
    if left_out:
        notes.append(f"image questions only: 0 of {left_out} video questions have an answer")
    return aggregate.collect(
        "seed", headline, scores, verdicts, matched, source=SOURCE, split=split, notes=notes
    )


def _verdict(item: SeedItem, answer: Answer | None) -> Verdict:
    text = answer.text if answer else None
    return Verdict(
        question_id=item.question.id,
        type=item.skill,
        score=float(text == item.truth),
        answer=text,
        truth=item.truth,
        status=aggregate.answer_status(answer, is_parsed=text in LETTERS),
        facets={"kind": item.kind, "skill_id": str(item.skill_id)},
        image=item.question.image,
        question=item.question.text,
    )


def write_seed_upload(
    items: Sequence[SeedItem], answers: Sequence[Answer], path: Path, *, allow_missing: AllowMissing = False
) -> None:
    """Write the leaderboard's jsonl: question_id (as text) and prediction of each answered item."""
    kept = drop_unknown_videos(items, answers)
    matched = match([item.question for item in items], kept, allow_missing=allow_missing, name="seed")
    write_jsonl(
        path,
        (
            {"question_id": str(item.question.id), "prediction": answer.text}
            for item, answer in zip(items, matched.answers, strict=True)
            if answer
        ),
    )


def _items(root: Path, truth: Path | None = None) -> list[SeedItem]:
    return read_seed_items(
        truth or require_file(root, ANNOTATIONS, what="SEED-Bench's questions and answers")
    )


def _build(root: Path, split: str) -> list[Question]:
    return [item.question for item in _items(root) if split == "all" or item.kind == split]


def _judge(task: Task) -> Scores:
    known = _items(task.root, task.truth)
    asked = select_asked(known, task.answers, split=task.split)
    return judge_items(
        asked,
        task.answers,
        allow_missing=task.allow_missing,
        split=task.split,
        left_out=len(known) - len(asked),
    )


def _submit(task: Task, path: Path) -> None:
    items = select_asked(_items(task.root, task.truth), task.answers, split=task.split)
    write_seed_upload(items, task.answers, path, allow_missing=task.allow_missing)


# Questions of each type. Source: SEED-Bench.json; image 14,233 and video 5,009 as published.
SIZES = {
    "Scene Understanding": 3158, "Instance Identity": 1831, "Instance Attributes": 4649,
    "Instance Location": 978, "Instances Counting": 2447, "Spatial Relation": 657, "Instance Interaction": 97,
    "Visual Reasoning": 331, "Text Understanding": 85, "Action Recognition": 1740, "Action Prediction": 2044,
    "Procedure Understanding": 1225, "image": 14_233, "video": 5009, "total": 19_242,
}  # fmt: skip

BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench (image)",
    source=SOURCE,
    folder="seed_bench",
    question_files={"image": "llava-seed-bench-image.jsonl", "all": "llava-seed-bench.jsonl"},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(
        images="", merged="answers/{name}/merge.jsonl", submission="answers_upload/{name}.jsonl"
    ),
    result="accuracy per type, submission",
    submission_suffix=".jsonl",
    needs=((ANNOTATIONS,), ("SEED-Bench-image/*",)),
    download="AILab-CVC/SEED-Bench on the hub",
    official_sizes={"image": SIZES, "all": SIZES},
    quoted=("image",),
)
