"""MME: two yes/no questions about each image, in fourteen subtasks of perception and cognition.

Rule (the official eval_tool/calculation.py): an answer is yes or no if the first four characters of the
lower-cased text contain it, else "other" and wrong. Per subtask, acc is the share of correct questions, acc+
the share of images with both questions correct, and the score their sum in percent (at most 200). Perception
and cognition are sums of scores. The official program pairs consecutive lines; here the two questions of an
image are found by its name, so a missing line is an error and does not shift the pairs.

Ground truth in the root: MME_Benchmark_release_version with a folder per subtask (each image's two lines in
<subtask>/*.txt beside the images, or in <subtask>/questions_answers_YN/*.txt with <subtask>/images/), or the
eval tool's Your_Results/<subtask>.txt (image, question and Yes|No, tab-separated). Answers are LLaVA's rows,
or a folder of <subtask>.txt with the response as fourth column. For intervals, an image is one unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.benchmarks import aggregate
from llava.benchmarks.answers import Matched, match, read_answers
from llava.benchmarks.base import Benchmark, Evaluation, Task, find
from llava.errors import AnswersError, DataError
from llava.files import atomic_write, read_text
from llava.prompts.wording import SHORT_SUFFIX
from llava.schema import Answer, Question, Score, Scores, Verdict
from llava.scoring.metrics import PERCENT

SOURCE = "MME eval_tool/calculation.py (BradyFU, branch Evaluation)"
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION
# Subtasks with a separate image folder, which is part of LLaVA's question ids.
WITH_IMAGE_FOLDER = frozenset({"artwork", "celebrity", "landmark", "posters", "scene"})
YES_NO = "Please answer yes or no."
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
ANSWER_CHARACTERS = 4
# One for one, so that the official program reads the same first characters as we do.
NO_SEPARATORS = str.maketrans("\t\r\n", "   ")
# The official counts as (truth, answer), with "yes" as the positive class.
CONFUSION = {"TP": ("yes", "yes"), "FN": ("yes", "no"), "TN": ("no", "no"), "FP": ("no", "yes")}


@dataclass(frozen=True, slots=True)
class MmeItem:
    """One line of the ground truth. `stem` is the image's name without folder and suffix."""

    subtask: str
    stem: str
    question: str
    truth: str
    image: str

    @property
    def text(self) -> str:
        """The question as LLaVA asks it, with its own instead of MME's instruction."""
        return f"{_strip_instruction(self.question)}\n{SHORT_SUFFIX}"


def read_mme_items(folder: Path) -> list[MmeItem]:
    """Read MME's questions and answers: from <subtask>.txt where it is there, else from the folder <subtask>.

    Raises:
        DataError: There is none, a line is damaged, or an image does not have two questions.
    """
    items = [item for subtask in SUBTASKS for item in _read_subtask(folder, subtask)]
    if not items:
        raise DataError(
            f"{folder}: found neither <subtask>.txt nor <subtask>/ of MME, e.g. {SUBTASKS[0]}",
            code="missing-file",
        )
    per_image: dict[tuple[str, str], int] = defaultdict(int)
    for item in items:
        per_image[item.subtask, item.stem] += 1
    odd = [f"{subtask}/{stem} ({count})" for (subtask, stem), count in per_image.items() if count != 2]
    if odd:
        raise DataError(
            f"{folder}: {len(odd)} images do not have two questions: {', '.join(odd[:5])}",
            code="unpaired-image",
        )
    return items


def _read_subtask(folder: Path, subtask: str) -> Iterator[MmeItem]:
    table, inside = folder / f"{subtask}.txt", folder / subtask
    if table.is_file():
        for number, row in _read_rows(table, columns=3):
            image = f"images/{row[0]}" if subtask in WITH_IMAGE_FOLDER else row[0]
            yield _item(subtask, row[0], row[1], row[2], f"{subtask}/{image}", f"{table}:{number}")
        return
    texts = inside / "questions_answers_YN"
    images = inside / "images" if texts.is_dir() else inside
    for path in sorted((texts if texts.is_dir() else inside).glob("*.txt")):
        names = (f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES)
        name = next((name for name in names if (images / name).is_file()), f"{path.stem}.jpg")
        image = (images / name).relative_to(folder).as_posix()
        for number, row in _read_rows(path, columns=2):
            yield _item(subtask, path.stem, row[0], row[1], image, f"{path}:{number}")


def _read_rows(path: Path, *, columns: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        if "\0" in line:
            raise DataError(f"{path}:{number}: holds a NUL byte; this is no text file", code="not-tsv")
        row = line.rstrip("\r").split("\t")
        if len(row) < columns:
            raise DataError(
                f"{path}:{number}: found {len(row)} columns, wanted {columns} separated by tabs",
                code="missing-column",
            )
        yield number, row


def _item(subtask: str, image: str, question: str, truth: str, path: str, where: str) -> MmeItem:
    truth = truth.strip().lower()
    if truth not in {"yes", "no"}:
        raise DataError(f"{where}: the answer is {truth!r}, wanted Yes or No", code="wrong-label")
    return MmeItem(subtask, Path(image).stem, question, truth, path)


def _strip_instruction(question: str) -> str:
    return question.replace(YES_NO, "").strip()


def _image_key(identifier: str) -> str:
    """Return subtask and stem, so that `posters/images/tt1.jpg` equals `posters/tt1.png`."""
    parts = identifier.split("/")
    return f"{parts[0]}/{Path(parts[-1]).stem}"


def read_responses(path: Path) -> list[Answer]:
    """Read the answers in a file of LLaVA's rows or in a folder of the eval tool's <subtask>.txt."""
    if not path.is_dir():
        return read_answers(path)
    answers = []
    for subtask in SUBTASKS:
        if (path / f"{subtask}.txt").is_file():
            for _, row in _read_rows(path / f"{subtask}.txt", columns=4):
                answers.append(Answer(f"{subtask}/{row[0]}", _strip_instruction(row[1]), "\t".join(row[3:])))
    if not answers:
        raise AnswersError(f"{path}: no <subtask>.txt of MME in this folder", code="not-answers")
    return answers


def parse_mme_answer(text: str) -> str | None:
    """Return "yes" or "no" by the official rule, None for the official "other"."""
    start = text.lower()[:ANSWER_CHARACTERS]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


def _find_truth_folder(task: Task) -> Path:
    folder = task.truth or find(
        task.root, "MME_Benchmark_release_version", "eval_tool/*Your_Results", "*Your_Results"
    )
    if folder is None:
        raise DataError(
            f"{task.root}: no ground truth; wanted MME_Benchmark_release_version/ or eval_tool/Your_Results/",
            code="missing-file",
        )
    return folder


def _build(root: Path, split: str) -> list[Question]:
    items = read_mme_items(_find_truth_folder(Task(root, split, ())))
    return [Question(item.image, item.text, item.image, item.subtask) for item in items]


def _match(task: Task, items: Sequence[MmeItem]) -> Matched:
    questions = [Question(f"{item.subtask}/{item.stem}", _strip_instruction(item.question)) for item in items]
    answers = [
        replace(
            answer,
            question_id=_image_key(str(answer.question_id)),
            prompt=answer.prompt.removesuffix(SHORT_SUFFIX).strip(),
        )
        for answer in task.answers
    ]
    return match(questions, answers, allow_missing=task.allow_missing, name="mme")


def _judge(task: Task) -> Scores:
    items = read_mme_items(_find_truth_folder(task))
    matched = _match(task, items)
    verdicts = [_verdict(item, answer) for item, answer in matched.pairs(items)]
    scores: list[Score] = []
    totals: dict[str, Score] = {}
    for subtask in SUBTASKS:
        own_verdicts = [verdict for verdict in verdicts if verdict.type == subtask]
        if own_verdicts:
            total, others = _subtask_scores(subtask, own_verdicts)
            totals[subtask] = total
            scores += [total, *others]
    for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [totals[subtask] for subtask in subtasks if subtask in totals]
        if present:
            scores.append(aggregate.sum_of(name, present, note=f"of {200 * len(present)}"))
    scores.append(_accuracy("accuracy", verdicts, group="total"))
    headline = "perception" if any(subtask in totals for subtask in PERCEPTION) else "cognition"
    return aggregate.collect("mme", headline, scores, verdicts, matched, source=SOURCE, split=task.split)


def _verdict(item: MmeItem, answer: Answer | None) -> Verdict:
    parsed = parse_mme_answer(answer.text) if answer else None
    return Verdict(
        question_id=item.image,
        type=item.subtask,
        score=float(parsed == item.truth),
        answer=answer.text if answer else None,
        truth=item.truth,
        status=aggregate.answer_status(answer, is_parsed=parsed is not None),
        facets={"says": parsed or "other", "image": f"{item.subtask}/{item.stem}"},
        image=item.image,
        question=item.text,
    )


def _subtask_scores(subtask: str, verdicts: Sequence[Verdict]) -> tuple[Score, list[Score]]:
    """Return the score of one subtask, and its acc, acc+ and confusion scores."""
    images: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        images[verdict.facets["image"]].append(verdict.score)
    both = {image: PERCENT * (sum(points) == len(points)) for image, points in images.items()}
    acc = sum(verdict.score for verdict in verdicts) / len(verdicts) * PERCENT
    acc_plus = sum(value > 0 for value in both.values()) / len(both) * PERCENT
    units = {image: PERCENT * sum(points) / len(points) + both[image] for image, points in images.items()}
    score = aggregate.mean_of_units(
        subtask,
        units,
        group="type",
        value=acc + acc_plus,
        n=len(verdicts),
        note="of 200",
        top=2 * PERCENT,
    )
    return score, [
        _accuracy(subtask, verdicts, group="acc"),
        aggregate.share_of_units(subtask, both, group="acc+"),
        *_confusion(subtask, verdicts),
    ]


def _accuracy(name: str, verdicts: Sequence[Verdict], *, group: str) -> Score:
    """Return the share of correct questions, with images as units."""
    images: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        images[verdict.facets["image"]].append(verdict.score)
    units = {image: PERCENT * sum(points) / len(points) for image, points in images.items()}
    value = sum(verdict.score for verdict in verdicts) / len(verdicts) * PERCENT
    return aggregate.mean_of_units(name, units, group=group, value=value, n=len(verdicts))


def _confusion(subtask: str, verdicts: Sequence[Verdict]) -> list[Score]:
    """Return the official counts, and precision and recall (0 to 1), which ignore "other"."""
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for verdict in verdicts:
        images[verdict.facets["image"]].append((verdict.truth, verdict.facets["says"]))
    pairs = [pair for own in images.values() for pair in own]
    table = {name: pairs.count(pair) for name, pair in CONFUSION.items()}
    table["other"] = len(pairs) - sum(table.values())
    scores = [Score(f"{subtask} {name}", count, len(pairs), "confusion") for name, count in table.items()]
    for name, error in (("precision", "FP"), ("recall", "FN")):
        tp, denominator = table["TP"], table["TP"] + table[error]
        terms = {
            image: (own.count(CONFUSION["TP"]), own.count(CONFUSION["TP"]) + own.count(CONFUSION[error]))
            for image, own in images.items()
        }
        scores.append(
            aggregate.ratio_of_units(
                f"{subtask} {name}",
                terms,
                group="confusion",
                value=tp / denominator if denominator else 0.0,
                n=len(pairs),
                scale=1.0,
            )
        )
    return scores


def _submit(task: Task, folder: Path) -> None:
    """Write the eval tool's folder: <subtask>.txt of image, question, truth and response."""
    items = read_mme_items(_find_truth_folder(task))
    matched = _match(task, items)
    for subtask in dict.fromkeys(item.subtask for item in items):
        with atomic_write(folder / f"{subtask}.txt") as stream:
            for item, answer in zip(items, matched.answers, strict=True):
                if item.subtask == subtask and answer:
                    response = answer.text.translate(NO_SEPARATORS)
                    name = Path(item.image).name
                    stream.write(f"{name}\t{item.question}\t{item.truth.capitalize()}\t{response}\n")


# Questions of each subtask. Source: MME_Benchmark_release_version.
SIZES = {
    "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
    "landmark": 400, "artwork": 400, "OCR": 40, "commonsense_reasoning": 140, "numerical_calculation": 40,
    "text_translation": 40, "code_reasoning": 40,
}  # fmt: skip

BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    source=SOURCE,
    folder="MME",
    question_files={"test": "llava_mme.jsonl"},
    build=_build,
    judge=_judge,
    submit=_submit,
    evaluation=Evaluation(images="MME_Benchmark_release_version", submission="eval_tool/answers/{name}"),
    result="perception, cognition",
    submission_suffix="",
    answers_from=read_responses,
    needs=(("MME_Benchmark_release_version/*",),),
    download="the authors of MME, on request (BradyFU's Evaluation branch)",
    official_sizes={
        "test": {
            **SIZES,
            **{f"acc/{subtask}": size for subtask, size in SIZES.items()},
            **{f"acc+/{subtask}": size // 2 for subtask, size in SIZES.items()},
            "perception": sum(SIZES[subtask] for subtask in PERCEPTION),
            "cognition": sum(SIZES[subtask] for subtask in COGNITION),
            "accuracy": sum(SIZES.values()),
        }
    },
    quoted=("perception", "cognition"),
)
