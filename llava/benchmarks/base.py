"""What a benchmark is: its questions, how they are asked, how answers are judged, what is sent in.

`root` is the benchmark's folder under playground/data/eval, laid out as LLaVA's Evaluation.md says. `split`
names one of its question files. Nothing here knows a particular benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llava.benchmarks.answers import AllowMissing, read_answers
from llava.benchmarks.judging import Judging
from llava.benchmarks.records import is_data_fault, read_record_lines, require_id
from llava.errors import AnswersError, DataError, SettingsError
from llava.files import write_jsonl
from llava.prompts.wording import options_block
from llava.schema import Answer, JsonObject, Question, RecordId, Scores, describe_count

# Holds the benchmarks' folders, where a command is not told another place.
EVAL_ROOT = Path("playground/data/eval")

# The groups whose scores `official_sizes` names without their group.
PLAIN_GROUPS = frozenset({"total", "type"})


@dataclass(frozen=True, slots=True)
class Task:
    """One scoring: the benchmark's folder, which split, whose answers, and what to do about missing ones.

    `truth` replaces the usual place of the ground truth (a file or a folder, as the benchmark says).
    """

    root: Path
    split: str
    answers: Sequence[Answer]
    allow_missing: AllowMissing = False
    truth: Path | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A tiny official download: its right answers, which split it is of, and the headline they score."""

    answers: list[Answer]
    split: str | None = None
    best: float = 100.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How `llava eval` asks the questions of a split, and where it writes.

    Paths are under the benchmark's folder. In `answers`, `merged`, `submission` and `grades`, {name} is the
    model's name and {file} the question file's name without suffix.

    Attributes:
        questions: The question file's form: LLaVA's jsonl, MMBench's TSV, or ScienceQA's conversations.
        images: The folder of the images.
        max_new_tokens: The longest answer.
        suffix: A line that is added to each question and not logged, for question files that lack it.
        answers: The folder of the shards' answers, their journal, and metrics.json.
        merged: The file of all answers in question order.
        submission: What the server or judge takes; empty: nothing is written.
        grades: Patterns of a paid judge's files. If given, these are scored, the newest that is not older
            than the answers, and without one there are no scores.
        is_scored: Whether answers can be scored here; false where only a server can.
        also_prepare: Further splits whose question files the submission needs.
    """

    questions: Literal["jsonl", "mmbench", "conversations"] = "jsonl"
    images: str = "images"
    max_new_tokens: int = 128
    suffix: str | None = None
    answers: str = "answers/{name}"
    merged: str = "answers/{name}.jsonl"
    submission: str = ""
    grades: tuple[str, ...] = ()
    is_scored: bool = True
    also_prepare: tuple[str, ...] = ()


Writer = Callable[[Task, Path], None]
LONGEST_NUMBER = 18


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark from its official download to its scores and submission.

    Attributes:
        name: The name of its module.
        title: What papers call it.
        source: Where the rules come from.
        folder: Its folder under playground/data/eval.
        build: Returns the questions of a split from the official download.
        judge: Scores answers by the official rule.
        submit: Writes the file that a server or judge takes.
        question_files: Each split's question file under `root`, the usual split first. One that is not jsonl
            is read by `build`.
        evaluation: How its questions are asked and where the answers go.
        evaluation_of: The same for splits that differ.
        unit_of: What the ids of questions that make sense only together have in common (MMBench's rotations).
        result: What it scores, in a few words.
        write_file: Writes a question file that is not jsonl; returns the number of questions.
        aliases: Other names of it, such as that of its script.
        needs: The files under `root` that a run needs, each a choice of patterns.
        needs_of: The same for splits that need others.
        download: Where to get those files.
        also_submit: Writers of further files by their path, which is given like `Evaluation.submission`.
        judging: How a paid or local judge grades the answers, where a benchmark needs one.
        submission_suffix: The suffix of the submission file; empty for a folder.
        answers_from: Reads answers in any form they come in.
        official_sizes: How many questions the official file of each split has, by the score that is over
            them: NAME in the groups total and type, else GROUP/NAME. A score over another number says
            "k of n" wherever it appears.
        quoted: The total scores that papers quote, marked wherever they appear; by default the headline.
        example: Writes a tiny download to a folder, for the contract tests.
    """

    name: str
    title: str
    source: str
    folder: str
    build: Callable[[Path, str], list[Question]]
    judge: Callable[[Task], Scores]
    submit: Writer
    question_files: dict[str, str]
    evaluation: Evaluation = field(default_factory=Evaluation)
    evaluation_of: Mapping[str, Evaluation] = field(default_factory=dict)
    unit_of: Callable[[RecordId], RecordId] = lambda identifier: identifier
    result: str = "accuracy"
    write_file: Callable[[Path, str, Path], int] | None = None
    aliases: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    needs_of: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    download: str = ""
    also_submit: Mapping[str, Writer] = field(default_factory=dict)
    judging: Judging | None = None
    submission_suffix: str = ".json"
    answers_from: Callable[[Path], list[Answer]] = field(default=read_answers)
    official_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    quoted: tuple[str, ...] = ()
    example: Callable[[Path], Example] | None = None

    @property
    def splits(self) -> list[str]:
        """The names of the splits, the usual one first."""
        return list(self.question_files)

    def missing(self, root: Path, split: str | None = None) -> list[str]:
        """Return which of the files that a run of `split` needs are not under `root`."""
        return [
            " or ".join(choice)
            for choice in self.needs_of.get(self.pick_split(split), self.needs)
            if not any(True for pattern in choice for _ in root.glob(pattern))
        ]

    def downloads(self, root: Path) -> list[Path]:
        """Return the files that a run of any split needs and that are there."""
        needs = [*self.needs, *(choice for needs in self.needs_of.values() for choice in needs)]
        return [path for choice in needs for pattern in choice for path in root.glob(pattern)]

    def evaluation_for(self, split: str | None) -> Evaluation:
        """Return how the questions of `split` are asked."""
        return self.evaluation_of.get(self.pick_split(split), self.evaluation)

    def pick_split(self, split: str | None) -> str:
        """Return the split called `split`, or whose question file is called so without suffix.

        Raises:
            SettingsError: There is none; the message lists those there are.
        """
        if split is None:
            return self.splits[0]
        by_file = {Path(file).stem: name for name, file in self.question_files.items()}
        if split not in self.question_files and split not in by_file:
            raise SettingsError(
                f"{self.name} has no split {split!r}; there are: {', '.join(self.splits)}",
                code="unknown-split",
            )
        return split if split in self.question_files else by_file[split]

    def question_path(self, root: Path, split: str | None = None) -> Path:
        """Return the path of the question file of `split`, which may not exist yet."""
        return root / self.question_files[self.pick_split(split)]

    def read_questions(self, root: Path, split: str | None = None) -> list[Question]:
        """Read the questions in order: from the question file, else from the official download."""
        path = self.question_path(root, split)
        if path.suffix == ".jsonl" and path.is_file():
            return read_jsonl_questions(path)
        with self._explaining_data_faults(root):
            return self.build(root, self.pick_split(split))

    @contextmanager
    def _explaining_data_faults(self, root: Path) -> Iterator[None]:
        """Raise a DataError for a record of another shape; a bug in a task's code keeps its traceback."""
        try:
            yield
        except (TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
            if not is_data_fault(error):
                raise
            raise DataError(
                f"{self.name}: a record under {root} is not of the official shape "
                f"({type(error).__name__}: {error}); LLAVA_TRACEBACK=1 shows where",
                code="record-shape",
            ) from error

    def prepare(self, root: Path, path: Path, *, split: str | None = None) -> int:
        """Write the question file `path` from the official download and return how many questions it holds.

        Raises:
            SettingsError: The benchmark's download is its question file (MMBench): there is nothing to write.
        """
        name = self.pick_split(split)
        if self.write_file is not None:
            with self._explaining_data_faults(root):
                return self.write_file(root, name, path)
        if path.suffix != ".jsonl":
            raise SettingsError(
                f"{self.name} is read as downloaded; {path.name} is not made from anything else",
                code="not-prepared",
            )
        with self._explaining_data_faults(root):
            questions = self.build(root, name)
        write_jsonl_questions(path, questions)
        return len(questions)

    def read_answers(self, path: Path) -> list[Answer]:
        """Read the answers in `path`, in any form this benchmark's answers come in."""
        return self.answers_from(path)

    def score(
        self,
        root: Path,
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        truth: Path | None = None,
        allow_missing: AllowMissing = False,
    ) -> Scores:
        """Judge `answers` by the official rule. The headline has no value where only a server can tell.

        Raises:
            AnswersError: Answers are missing (unless `allow_missing`), contradict, or answer other questions.
            DataError: The ground truth is absent or damaged.
            SettingsError: Missing answers should be left out, and the benchmark counts them.
        """
        split = self.pick_split(split)
        with self._explaining_data_faults(truth or root):
            scores = self.judge(Task(root, split, answers, allow_missing, truth))
            if allow_missing == "left out":
                scores = _mark_limited(scores, self.judge(Task(root, split, answers, True, truth)))
        return self.with_official_facts(scores, split)

    def with_official_facts(self, scores: Scores, split: str) -> Scores:
        """Return `scores`, each with its official number of questions and whether papers quote it."""
        sizes, quoted = self.official_sizes.get(split, {}), self.quoted or (scores.headline,)
        known = (
            replace(
                score,
                of=sizes.get(
                    score.name if score.group in PLAIN_GROUPS else f"{score.group}/{score.name}", score.of
                ),
                quoted=score.group == "total" and score.name in quoted,
            )
            for score in scores.scores
        )
        return replace(scores, scores=tuple(known))

    def describe_count(self, count: int, split: str) -> str:
        """Return `count` questions of `split` as text, "3 of 14233 questions" if officially there are more.

        The official number is that of the score named as the split (SEED's image), else the largest.
        """
        sizes = self.official_sizes.get(split, {})
        return f"{describe_count(count, sizes.get(split, max(sizes.values(), default=None)))} questions"

    def judge_prompts(self, task: Task) -> Mapping[RecordId, list[JsonObject]]:
        """Return what a judge is told about each answer: chat messages, by the question's id.

        Raises:
            AnswersError: Answers are missing, contradict, or answer other questions.
            SettingsError: The benchmark needs no judge.
        """
        if self.judging is None:
            raise SettingsError(f"{self.name} needs no judge", code="no-judge")
        with self._explaining_data_faults(task.root):
            return self.judging.prompts(task)

    def write_submission(
        self,
        root: Path,
        answers: Sequence[Answer],
        path: Path,
        *,
        split: str | None = None,
        truth: Path | None = None,
        allow_missing: bool = False,
        writer: Writer | None = None,
    ) -> None:
        """Write the file that the benchmark's server (or judge) takes, byte for byte as the original does.

        `writer` writes another file than the submission, one of `also_submit`.
        """
        if not answers:
            raise AnswersError(f"{self.name}: there are no answers to send in", code="no-answers")
        with self._explaining_data_faults(truth or root):
            (writer or self.submit)(Task(root, self.pick_split(split), answers, allow_missing, truth), path)


def _mark_limited(scores: Scores, whole: Scores) -> Scores:
    """Return `scores` of a limited run, each with the number of questions that it has in the `whole` run."""
    if any(verdict.status == "unanswered" for verdict in scores.verdicts):
        raise SettingsError(
            f"{scores.benchmark} cannot be limited: its rule counts questions that were not asked. Its "
            "module should pair questions and answers by Matched.pairs",
            code="cannot-limit",
        )
    sizes = {(score.group, score.name): score.n for score in whole.scores}
    marked = (replace(score, of=sizes.get((score.group, score.name))) for score in scores.scores)
    return replace(scores, scores=tuple(marked))


def read_jsonl_questions(path: Path, required: Sequence[str] = ("question_id", "text")) -> list[Question]:
    """Read the questions of one of LLaVA's jsonl files, in its order.

    Raises:
        DataError: The file is damaged, or a row lacks one of the `required` keys, or its id is none.
    """
    questions = []
    for line, row in read_record_lines(path):
        require_keys(row, required, f"{path}:{line}")
        require_id(row["question_id"], f"{path}:{line}")
        image, category = row.get("image"), row.get("category", "default")
        questions.append(Question(row["question_id"], row.get("text", ""), image, category))
    return questions


def write_jsonl_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write `questions` as LLaVA's jsonl: question_id, image, text, category."""
    write_jsonl(
        path,
        ({"question_id": q.id, "image": q.image, "text": q.text, "category": q.category} for q in questions),
    )


def require_keys(row: object, keys: Iterable[str], where: str) -> None:
    """Check that `row` is a JSON object that has `keys`.

    Raises:
        DataError: It is not, or lacks one; the message starts with `where`.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, wanted a JSON object", code="not-an-object")
    missing = [key for key in keys if key not in row]
    if missing:
        raise DataError(
            f"{where}: lacks the key {', '.join(missing)}; it has {', '.join(row) or 'none'}",
            code="missing-key",
        )


def find(root: Path, *candidates: str) -> Path | None:
    """Return the first of `candidates` (paths or patterns under `root`) that exists, else None."""
    for candidate in candidates:
        for path in sorted(root.glob(candidate)):
            return path
    return None


def require_file(root: Path, *candidates: str, what: str) -> Path:
    """Return the first of `candidates` that exists.

    Raises:
        DataError: None does; the message says what is wanted and where it was looked for.
    """
    path = find(root, *candidates)
    if path is None:
        raise DataError(f"{root}: {what} not found; looked for {', '.join(candidates)}", code="missing-file")
    return path


def options_text(question: str, options: Sequence[str]) -> str:
    """Return `question` followed by a line for each option: `A. ...`, `B. ...`."""
    return f"{question}\n{options_block(options)}" if options else question


def as_number(identifier: str) -> str | int:
    """Return an id of digits as an int, any other unchanged (SEED's "101669" and "v1738")."""
    is_number = identifier.isascii() and identifier.isdigit() and len(identifier) <= LONGEST_NUMBER
    return int(identifier) if is_number else identifier
