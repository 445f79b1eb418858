"""POPE: three lists of yes/no questions about objects in 500 COCO images.

Rule (LLaVA v1.2.2 eval_pope.py): take the text before the first period, drop commas and split at spaces.
"No", "no" or "not" among the words means no, anything else yes. Each list gets accuracy, precision, recall
and F1 with "yes" as the positive class, and the share of yes; the headline is the mean of the three F1.

Labels (coco_pope_<list>.json, one object per line) belong to the questions of a list by position. There must
be as many labels as questions, with equal texts where both have them. (The original pairs as many as there
are and divides by zero on an empty list.) As in the original, a list without label file is not scored; a note
says so.

For intervals, an image with all its questions is one unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import NotRequired, TypedDict, cast

from llava.benchmarks import aggregate
from llava.benchmarks.answers import match
from llava.benchmarks.base import Benchmark, Evaluation, Task, find, require_keys
from llava.benchmarks.records import read_record_lines
from llava.errors import DataError
from llava.files import write_jsonl
from llava.prompts.wording import SHORT_SUFFIX
from llava.schema import Answer, Question, Score, Scores, Verdict
from llava.scoring import intervals

SOURCE = "LLaVA v1.2.2 llava/eval/eval_pope.py"
PREFIX = "coco_pope_"
QUESTION_FILE = "llava_pope_test.jsonl"
# Each list's offset of question ids, in the order of LLaVA's question file.
LISTS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
NO_WORDS = frozenset({"No", "no", "not"})
YES_WORDS = frozenset({"yes", "Yes"})
# A missing answer counts as the wrong one.
WRONG = {"yes": "no", "no": "yes"}


class Label(TypedDict):
    """A row of a label file, as far as it is used."""

    label: str
    text: NotRequired[str]
    image: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Confusion:
    """The confusion counts of one list, with "yes" as the positive class."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        """The share of correct answers."""
        return (self.tp + self.tn) / (self.tp + self.tn + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """The share of correct answers among "yes" answers, 0 if there are none."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """The share of "yes" labels that were answered "yes", 0 if there are none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, 0 if both are 0."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """The share of "yes" answers."""
        return (self.tp + self.fp) / (self.tp + self.tn + self.fp + self.fn)


# Each measure's official formula, and a confusion's share of its numerator and denominator.
MEASURES: dict[str, tuple[Callable[[Confusion], float], Callable[[Confusion], tuple[int, int]]]] = {
    "accuracy": (lambda c: c.accuracy, lambda c: (c.tp + c.tn, c.tp + c.fp + c.tn + c.fn)),
    "F1": (lambda c: c.f1, lambda c: (2 * c.tp, 2 * c.tp + c.fp + c.fn)),
    "precision": (lambda c: c.precision, lambda c: (c.tp, c.tp + c.fp)),
    "recall": (lambda c: c.recall, lambda c: (c.tp, c.tp + c.fn)),
    "yes share": (lambda c: c.yes_ratio, lambda c: (c.tp + c.fp, c.tp + c.fp + c.tn + c.fn)),
}


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def parse_pope_answer(text: str) -> str:
    """Return "yes" or "no" by the rule above."""
    return "no" if NO_WORDS & set(_words(text)) else "yes"


def _words(text: str) -> list[str]:
    return text.split(".")[0].replace(",", "").split(" ")


def count_confusion(pairs: Sequence[tuple[str, str]]) -> Confusion:
    """Count the confusion of (truth, answer) pairs."""
    return Confusion(
        tp=pairs.count(("yes", "yes")),
        fp=pairs.count(("no", "yes")),
        tn=pairs.count(("no", "no")),
        fn=pairs.count(("yes", "no")),
    )


def read_labels(folder: Path) -> dict[str, list[Label]]:
    """Read every coco_pope_*.json in `folder`: list name -> rows with a yes/no label.

    Raises:
        DataError: There is no file, a file is empty, or a label is neither yes nor no.
    """
    files = sorted(folder.glob(f"{PREFIX}*.json"))
    if not files:
        raise DataError(f"{folder}: no {PREFIX}*.json", code="missing-file")
    labels: dict[str, list[Label]] = {}
    for path in files:
        rows: list[Label] = []
        for line, row in read_record_lines(path):
            require_keys(row, ["label"], f"{path}:{line}")
            if row["label"] not in {"yes", "no"}:
                raise DataError(
                    f"{path}:{line}: label is {row['label']!r}, wanted 'yes' or 'no'", code="wrong-label"
                )
            rows.append(cast(Label, row))
        if not rows:
            raise DataError(f"{path}: this list is empty", code="empty-list")
        labels[path.stem.removeprefix(PREFIX)] = rows
    return labels


def find_label_folder(root: Path) -> Path:
    """Return the folder of the label files: <root>/coco or the root itself."""
    found = find(root, f"coco/{PREFIX}*.json", f"{PREFIX}*.json")
    if found is None:
        raise DataError(f"{root}: no {PREFIX}*.json here or in coco/", code="missing-file")
    return found.parent


def find_labels(questions: Sequence[Question], labels: Mapping[str, Sequence[Label]]) -> list[str | None]:
    """Return each question's label, by position within its list; None for a list without label file.

    Raises:
        DataError: A list has more or fewer questions than labels, or a question and its label differ in text.
    """
    indices: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        indices[question.category].append(index)
    found: list[str | None] = [None] * len(questions)
    for name, rows in labels.items():
        if len(indices[name]) != len(rows):
            raise DataError(
                f"POPE {name}: {len(indices[name])} questions but {len(rows)} labels", code="label-mismatch"
            )
        for index, row in zip(indices[name], rows, strict=True):
            text = questions[index].text.removesuffix(SHORT_SUFFIX).strip()
            if "text" in row and text and row["text"].strip() != text:
                raise DataError(
                    f"POPE {name}: question {questions[index].id} asks {text!r}, label: {row['text']!r}",
                    code="label-mismatch",
                )
            found[index] = row["label"]
    return found


def keep_labelled(
    questions: Sequence[Question], labels: Sequence[str | None], answers: Sequence[Answer]
) -> tuple[list[tuple[Question, str]], list[Answer], list[str]]:
    """Return the questions that have a label, the answers to them, and notes on the others."""
    known = [(question, label) for question, label in zip(questions, labels, strict=True) if label]
    unknown = [question for question, label in zip(questions, labels, strict=True) if not label]
    if not unknown:
        return known, list(answers), []
    ids = {str(question.id) for question in unknown}
    kept = [answer for answer in answers if str(answer.question_id) not in ids]
    lists = ", ".join(dict.fromkeys(question.category for question in unknown))
    note = f"{len(unknown)} questions are of lists without labels ({lists}); they are left out"
    return known, kept, [note]


def _build(root: Path, split: str) -> list[Question]:
    labels = read_labels(find_label_folder(root))
    return [
        Question(LISTS[name] + number, f"{row['text']}\n{SHORT_SUFFIX}", row["image"], name)
        for name in LISTS
        for number, row in enumerate(labels.get(name, []), start=1)
    ]


def _judge(task: Task) -> Scores:
    questions = BENCHMARK.read_questions(task.root, task.split)
    labels = find_labels(questions, read_labels(task.truth or find_label_folder(task.root)))
    known, answers, notes = keep_labelled(questions, labels, task.answers)
    matched = match([q for q, _ in known], answers, allow_missing=task.allow_missing, name="pope")
    verdicts = [_verdict(q, label, a) for (q, label), a in matched.pairs(known)]
    scores: list[Score] = []
    lists: list[dict[str, Confusion]] = []
    for name in dict.fromkeys(verdict.type for verdict in verdicts):
        own_verdicts = [verdict for verdict in verdicts if verdict.type == name]
        lists.append(_count_by_image(own_verdicts))
        scores += _list_scores(name, own_verdicts, lists[-1])
    f1_scores = [score for score in scores if score.group == "F1"]
    scores.append(_measure("accuracy", _count_by_image(verdicts), "accuracy", group="total"))
    scores.append(_mean_f1(f1_scores, lists, len(verdicts)))
    return aggregate.collect(
        "pope", "F1", scores, verdicts, matched, source=SOURCE, split=task.split, notes=notes
    )


def _verdict(question: Question, label: str, answer: Answer | None) -> Verdict:
    parsed = parse_pope_answer(answer.text) if answer else WRONG[label]
    is_parsed = answer is not None and (parsed == "no" or bool(YES_WORDS & set(_words(answer.text))))
    return Verdict(
        question_id=question.id,
        type=question.category,
        score=float(parsed == label),
        answer=answer.text if answer else None,
        truth=label,
        status=aggregate.answer_status(answer, is_parsed=is_parsed),
        facets={"says": parsed},
        image=question.image,
        question=question.text,
    )


def _count_by_image(verdicts: Sequence[Verdict]) -> dict[str, Confusion]:
    """Count the confusion of each image; a question without an image is on its own."""
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for verdict in verdicts:
        images[verdict.image or str(verdict.question_id)].append((verdict.truth, verdict.facets["says"]))
    return {image: count_confusion(pairs) for image, pairs in images.items()}


def _sum(confusions: Iterable[Confusion]) -> Confusion:
    return Confusion(*map(sum, zip(*map(astuple, confusions), strict=True)))


def _list_scores(name: str, verdicts: Sequence[Verdict], images: Mapping[str, Confusion]) -> list[Score]:
    """Return the scores of one list, whose `images` have these confusions."""
    scores = [
        _measure(name, images, measure, group="type" if measure == "accuracy" else measure)
        for measure in MEASURES
    ]
    total = _sum(images.values())
    table = {"TP": total.tp, "FP": total.fp, "TN": total.tn, "FN": total.fn}
    table["no answer"] = sum(verdict.status == "unanswered" for verdict in verdicts)
    scores += [Score(f"{name} {key}", number, len(verdicts), "confusion") for key, number in table.items()]
    return scores


def _measure(name: str, images: Mapping[str, Confusion], measure: str, *, group: str) -> Score:
    """Return one of MEASURES over all images, each of which is one unit."""
    official, terms = MEASURES[measure]
    total = _sum(images.values())
    return aggregate.ratio_of_units(
        name,
        {image: terms(confusion) for image, confusion in images.items()},
        group=group,
        value=official(total),
        n=sum(astuple(total)),
        interval=intervals.f1_interval if measure == "F1" else intervals.share_interval,
    )


def _mean_f1(lists: Sequence[Score], images: Sequence[Mapping[str, Confusion]], n: int) -> Score:
    """Return the mean of the lists' F1. An image is one unit: its contributions to all lists are added."""
    value = fmean(score.value or 0.0 for score in lists)
    units = dict.fromkeys((image for own in images for image in own), 0.0)
    for score in lists:
        own_units, mean = score.units or {}, score.value or 0.0
        scale = len(units) / len(own_units) if own_units else 0.0
        for image in units:
            deviation = own_units.get(image, mean) - mean
            units[image] += (mean + scale * deviation) / len(lists)
    terms = MEASURES["F1"][1]
    weights = [sum(terms(own[image])[1] for own in images if image in own) for image in units]
    return aggregate.mean_of_units(
        "F1",
        units,
        value=value,
        n=n,
        note="mean of the lists' F1",
        effective=intervals.effective_units(weights),
        interval=intervals.f1_interval,
    )


def _submit(task: Task, path: Path) -> None:
    """Write question_id and parsed yes or no per line (POPE has no server)."""
    write_jsonl(
        path, ({"question_id": a.question_id, "answer": parse_pope_answer(a.text)} for a in task.answers)
    )


# Source: coco_pope_*.json.
SIZES = {"random": 2910, "popular": 3000, "adversarial": 3000}

BENCHMARK = Benchmark(
    name="pope",
    title="POPE (COCO)",
    source=SOURCE,
    folder="pope",
    question_files={"test": QUESTION_FILE},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(images="val2014"),
    result="F1 of each list and their mean",
    submission_suffix=".jsonl",
    needs=((f"coco/{PREFIX}*.json", f"{PREFIX}*.json"), ("val2014/*",)),
    download="https://github.com/AoiDragon/POPE (lists) and COCO val2014",
    official_sizes={
        "test": {
            "accuracy": sum(SIZES.values()),
            "F1": sum(SIZES.values()),
            **SIZES,
            **{f"{group}/{name}": SIZES[name] for group in MEASURES for name in SIZES},
        }
    },
)
