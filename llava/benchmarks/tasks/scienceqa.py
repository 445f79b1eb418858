"""ScienceQA test: school questions with 2 to 5 options, about half of them with an image.

Rule (LLaVA v1.2.2 eval_science_qa.py): `letter_rules.scienceqa_letter` finds the letter; a letter beyond the
question's choices is wrong. ALL is the accuracy over all questions, IMG that over questions with an image
(called SQA in LLaVA's model zoo). If problems.json has subject, grade and topic, the official breakdown
(ScienceQA tools/evaluate_acc.py) is reported too.

Files in the root: problems.json and pid_splits.json, or llava_test_CQM-A.json, which has choices and answers
but no subjects. The latter is built if missing: hint as "Context: ...", question, one line per option; double
spaces are halved once, as in the original's file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from llava.benchmarks import aggregate, letter_rules
from llava.benchmarks.answers import match, read_answers
from llava.benchmarks.base import Benchmark, Evaluation, Task, find, options_text, require_keys
from llava.benchmarks.records import read_json_records, require_id
from llava.benchmarks.scienceqa_formats import read_split
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import AnswersError, DataError
from llava.files import atomic_write
from llava.prompts.wording import LETTER_SUFFIX
from llava.schema import Answer, JsonObject, Question, Score, Scores, Verdict

SOURCE = "LLaVA v1.2.2 llava/eval/eval_science_qa.py; breakdown of ScienceQA tools/evaluate_acc.py"
QUESTION_FILE = "llava_test_CQM-A.json"
SPLIT = "test"
LETTERS = "ABCDE"
SUBJECTS = ("natural science", "social science", "language science")
YOUNGER = frozenset(f"grade{number}" for number in range(1, 7))

NO_ANSWER = Answer("", "Unknown", "FAILED")


@dataclass(frozen=True, slots=True)
class ScienceProblem:
    """One question. `text` has neither image token nor the instruction to answer by letter."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int
    image: str | None
    facets: dict[str, str]

    @property
    def truth(self) -> str:
        """The letter of the correct choice."""
        return LETTERS[self.answer]


def read_problems(root: Path, split: str = SPLIT) -> list[ScienceProblem]:
    """Read the problems of `split` from the official download, else from LLaVA's question file."""
    problems, splits = root / "problems.json", root / "pid_splits.json"
    if problems.is_file() and splits.is_file():
        return read_official_problems(problems, splits, split)
    path = find(root, QUESTION_FILE)
    if path is None:
        raise DataError(
            f"{root}: found neither problems.json with pid_splits.json nor {QUESTION_FILE}",
            code="missing-file",
        )
    return [
        _from_conversation(record, f"{path}: element {i}") for i, record in enumerate(read_json_records(path))
    ]


def read_tool_output(path: Path) -> list[Answer]:
    """Read ScienceQA answers from an answers file or one of the two files of LLaVA's evaluator."""
    try:
        value = read_json_records(path)
    except DataError:
        return read_answers(path)
    try:
        if isinstance(value, dict) and "outputs" in value:
            return [Answer(require_id(key, str(path)), "", text) for key, text in value["outputs"].items()]
        if isinstance(value, dict) and {"correct", "incorrect"} <= value.keys():
            rows = [*value["correct"], *value["incorrect"]]
            return [
                Answer(require_id(row["question_id"], str(path)), row["question"], row["pred"])
                for row in rows
            ]
    except (KeyError, TypeError, AttributeError) as error:
        raise AnswersError(
            f"{path}: not an output file of eval_science_qa.py ({error!r})", code="not-answers"
        ) from error
    return read_answers(path)


def read_official_problems(problems: Path, splits: Path, split: str) -> list[ScienceProblem]:
    """Read the problems that the file `splits` lists for `split` from the official download."""
    records, ids = read_json_records(problems), read_split(splits, split)
    lacking = [key for key in ids if key not in records]
    if lacking:
        raise DataError(
            f"{problems}: {len(lacking)} problems of split {split} are missing, e.g. {lacking[0]}",
            code="missing-problems",
        )
    for key in ids:
        require_keys(records[key], ("choices", "answer"), f"{problems}: problem {key}")
    return [_problem(key, records[key]) for key in ids]


def _problem(key: str, record: JsonObject) -> ScienceProblem:
    hint, image = record.get("hint", ""), record.get("image")
    question = f"Context: {hint}\n{record.get('question', '')}" if hint else record.get("question", "")
    return ScienceProblem(
        id=key,
        text=options_text(question, record["choices"]).replace("  ", " ").strip(),
        choices=tuple(record["choices"]),
        answer=record["answer"],
        image=f"{key}/{image}" if image else None,
        facets=_facets(record, hint, image),
    )


def _facets(record: JsonObject, hint: str, image: str | None) -> dict[str, str]:
    facets = {"image": "yes" if image else "no"}
    if {"subject", "grade", "topic"} <= record.keys():
        facets |= {
            "subject": record["subject"],
            "topic": record["topic"],
            "grade": "1-6" if record["grade"] in YOUNGER else "7-12",
            "text context": "yes" if hint else "no",
            "no context": "no" if hint or image else "yes",
        }
    return facets


def _from_conversation(record: JsonObject, where: str) -> ScienceProblem:
    try:
        question, letter = (turn["value"] for turn in record["conversations"][:2])
        text = question.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return ScienceProblem(
            id=str(require_id(record["id"], where)),
            text=text,
            choices=tuple(_options(text)),
            answer=LETTERS.index(letter),
            image=record.get("image"),
            facets={"image": "yes" if record.get("image") else "no"},
        )
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{where}: not a question of LLaVA's ScienceQA file ({error})", code="record-shape"
        ) from error


def _options(text: str) -> list[str]:
    r"""Split the list of options at the end of `text`; without one, return [].

    The first option follows the last "\nA. ", each further one the next "\nB. ", "\nC. " and so on.
    """
    start = text.rfind("\nA. ")
    options: list[str] = []
    for letter, following in zip(LETTERS, f"{LETTERS[1:]}\n", strict=True):
        if start < 0:
            break
        end = text.find(f"\n{following}. ", start + 1)
        options.append(text[start + len(f"\n{letter}. ") : end if end >= 0 else len(text)])
        start = end
    return options


def write_question_file(root: Path, split: str, path: Path) -> int:
    """Write LLaVA's question file from the official download and return the number of questions."""
    problems = read_official_problems(root / "problems.json", root / "pid_splits.json", split)
    records = []
    for problem in problems:
        token = f"{DEFAULT_IMAGE_TOKEN}\n" if problem.image else ""
        turns = [
            {"from": "human", "value": token + problem.text},
            {"from": "gpt", "value": problem.truth},
        ]
        image = {"image": problem.image} if problem.image else {}
        records.append({"id": problem.id, **image, "conversations": turns})
    with atomic_write(path) as stream:
        json.dump(records, stream, indent=2)
    return len(records)


def _build(root: Path, split: str) -> list[Question]:
    return [Question(p.id, f"{p.text}\n{LETTER_SUFFIX}", p.image) for p in read_problems(root, split)]


def _judge(task: Task) -> Scores:
    problems = read_problems(task.truth or task.root, task.split)
    questions = [Question(problem.id, problem.text) for problem in problems]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="scienceqa")
    verdicts = [_verdict(p, answer) for p, answer in matched.pairs(problems)]
    scores = [
        aggregate.accuracy(verdicts, "ALL", over={}),
        aggregate.accuracy(verdicts, "IMG", over={"image": "yes"}),
        *score_breakdown(verdicts),
    ]
    headline = "IMG" if scores[1].n else "ALL"
    return aggregate.collect(
        "scienceqa", headline, scores, verdicts, matched, source=SOURCE, split=task.split
    )


def _verdict(problem: ScienceProblem, answer: Answer | None) -> Verdict:
    letter = letter_rules.scienceqa_letter(answer.text, LETTERS) if answer else None
    return Verdict(
        question_id=problem.id,
        type=problem.facets.get("subject", "all"),
        score=float(letter is not None and choice_index(letter, problem.choices) == problem.answer),
        answer=answer.text if answer else None,
        truth=problem.truth,
        status=aggregate.answer_status(answer, is_parsed=letter is not None),
        facets=problem.facets,
        image=problem.image,
        question=problem.text,
    )


def choice_index(letter: str, choices: Sequence[str], letters: Sequence[str] = LETTERS) -> int:
    """Return the index of `letter` among the choices, -1 if there is no such choice."""
    return letters.index(letter) if letter in tuple(letters[: len(choices)]) else -1


def score_breakdown(verdicts: Sequence[Verdict]) -> list[Score]:
    """Return the accuracy per subject, context, grade and topic, if the problems have them."""
    known = [verdict for verdict in verdicts if "subject" in verdict.facets]
    if not known:
        return []
    subjects = [name for name in SUBJECTS if any(v.type == name for v in known)]
    topics = sorted({verdict.facets["topic"] for verdict in known})
    return [
        *aggregate.accuracy_by(known, names=subjects),
        aggregate.accuracy(known, "text", group="context", over={"text context": "yes"}),
        aggregate.accuracy(known, "image", group="context", over={"image": "yes"}),
        aggregate.accuracy(known, "none", group="context", over={"no context": "yes"}),
        *aggregate.accuracy_by(known, "grade", names=["1-6", "7-12"]),
        *aggregate.accuracy_by(known, "topic", names=topics),
    ]


class ResultFile(TypedDict):
    """The original's result file: accuracy in percent, counts, and index (-1: none) and text by problem."""

    acc: float
    correct: int
    count: int
    results: dict[str, int]
    outputs: dict[str, str]


def build_result_file(
    problems: Sequence[ScienceProblem], answers: Mapping[str, Answer], letters: str = LETTERS
) -> ResultFile:
    """Return the content of the original's result file; a missing answer is "FAILED"."""
    indices, texts = {}, {}
    for problem in problems:
        text = answers[problem.id].text if problem.id in answers else "FAILED"
        letter = letter_rules.scienceqa_letter(text, letters)
        indices[problem.id] = -1 if letter is None else choice_index(letter, problem.choices, letters)
        texts[problem.id] = text
    correct = sum(indices[problem.id] == problem.answer for problem in problems)
    return {
        "acc": correct / len(problems) * 100,
        "correct": correct,
        "count": len(problems),
        "results": indices,
        "outputs": texts,
    }


def build_analysis(
    problems: Sequence[ScienceProblem], answers: Mapping[str, Answer], letters: str = LETTERS
) -> dict[str, list[JsonObject]]:
    """Return the original's analysis: the problems answered correctly and incorrectly, with their answers."""
    chosen = build_result_file(problems, answers, letters)["results"]
    rows: dict[str, list[JsonObject]] = {"correct": [], "incorrect": []}
    for problem in problems:
        answer = answers.get(problem.id, NO_ANSWER)
        row = {
            "question_id": problem.id,
            "parsed_ans": letter_rules.scienceqa_letter(answer.text, letters) or "FAILED",
            "ground_truth": letters[problem.answer],
            "question": answer.prompt,
            "pred": answer.text,
            "is_multimodal": DEFAULT_IMAGE_TOKEN in answer.prompt,
        }
        rows["correct" if problem.answer == chosen[problem.id] else "incorrect"].append(row)
    return rows


def _match_problems(task: Task) -> tuple[list[ScienceProblem], dict[str, Answer]]:
    problems = read_problems(task.truth or task.root, task.split)
    questions = [Question(problem.id, problem.text) for problem in problems]
    matched = match(questions, task.answers, allow_missing=task.allow_missing, name="scienceqa")
    return problems, {str(answer.question_id): answer for answer in matched.answers if answer}


def _submit(task: Task, path: Path) -> None:
    write_json_as_original(path, build_result_file(*_match_problems(task)))


def _write_analysis(task: Task, path: Path) -> None:
    write_json_as_original(path, build_analysis(*_match_problems(task)))


def write_json_as_original(path: Path, value: object) -> None:
    """Write `value` as eval_science_qa.py does: indented, without a newline at the end."""
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2)


# Source: pid_splits.json and llava_test_CQM-A.json; subjects, contexts and grades follow from the leaderboard
# in the README of github.com/lupantech/ScienceQA: of all sizes, only these turn a column's percentages into
# whole numbers of right answers, in at least 43 of its 47 rows, and subjects and grades add up to ALL. The
# sizes of topics are not published.
SIZES = {
    **{"ALL": 4241, "IMG": 2017},
    **{"natural science": 2252, "social science": 889, "language science": 1100},
    **{"context/text": 2046, "context/image": 2017, "context/none": 1435},
    **{"grade/1-6": 2724, "grade/7-12": 1517},
}

BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA test",
    source=SOURCE,
    folder="scienceqa",
    question_files={SPLIT: QUESTION_FILE},
    write_file=write_question_file,
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(
        questions="conversations",
        images="images/test",
        max_new_tokens=1024,
        suffix=LETTER_SUFFIX,
        submission="answers/{name}_result.json",
    ),
    also_submit={"answers/{name}_output.jsonl": _write_analysis},
    result="ALL, IMG, breakdown",
    aliases=("sqa",),
    answers_from=read_tool_output,
    needs=(("problems.json",), ("pid_splits.json",), ("images/test/*",)),
    download="https://github.com/lupantech/ScienceQA",
    official_sizes={SPLIT: SIZES},
    quoted=("ALL", "IMG"),
)
