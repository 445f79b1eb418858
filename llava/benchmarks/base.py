"""What a benchmark is: how its questions are read, its answers judged, its submission written.

`root` is the benchmark's folder under playground/data/eval, laid out as LLaVA's Evaluation.md says; `split`
names one of several question files. Nothing here knows a particular benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.benchmarks.answers import read_answers
from llava.errors import AnswersError, DataError, SettingsError
from llava.files import read_jsonl, write_jsonl
from llava.prompts.wording import options_block
from llava.schema import Answer, Question, Scores


@dataclass(frozen=True, slots=True)
class Task:
    """One scoring: the benchmark's folder, which split, whose answers, and what to do about missing ones.

    `truth` overrides where the ground truth is looked for (a file or a folder, as the benchmark says).
    """

    root: Path
    split: str
    answers: Sequence[Answer]
    allow_missing: bool = False
    truth: Path | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How one benchmark is read, scored and sent in.

    `question_files` names each split's file under `root`, the usual split first; a file that is not jsonl is
    read by `build`, which also makes the questions from the official download where there is no file yet.
    `write_file` makes the question file in another form than jsonl and returns how many questions it holds.
    `submit` writes the file that a server or a judge wants.
    `needs` are the files under `root` without which a run from questions to scores cannot be made (each a
    choice of patterns, any one will do), `needs_of` those of splits that want others, `download` says where
    they come from.
    """

    name: str
    title: str
    source: str
    folder: str
    build: Callable[[Path, str], list[Question]]
    judge: Callable[[Task], Scores]
    submit: Callable[[Task, Path], None]
    question_files: dict[str, str]
    write_file: Callable[[Path, str, Path], int] | None = None
    aliases: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    needs_of: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    download: str = ""
    submission_suffix: str = ".json"
    answers_from: Callable[[Path], list[Answer]] = field(default=read_answers)

    @property
    def splits(self) -> list[str]:
        """The names of the question files, the usual one first."""
        return list(self.question_files)

    def missing(self, root: Path, question_file: str | None = None) -> list[str]:
        """What `root` lacks for the usual split, or for that of a question file named without its suffix."""
        stems = {Path(file).stem: split for split, file in self.question_files.items()}
        needs = self.needs_of.get(stems.get(question_file or "", ""), self.needs)
        return [
            " or ".join(choice)
            for choice in needs
            if not any(True for pattern in choice for _ in root.glob(pattern))
        ]

    def pick_split(self, split: str | None) -> str:
        """`split`, or the usual one for None; SettingsError names those there are."""
        if split is None:
            return self.splits[0]
        if split not in self.question_files:
            raise SettingsError(f"{self.name} has no split {split!r}; there are: {', '.join(self.splits)}")
        return split

    def question_path(self, root: Path, split: str | None = None) -> Path:
        """Where the question file of `split` lies or would lie."""
        return root / self.question_files[self.pick_split(split)]

    def read_questions(self, root: Path, split: str | None = None) -> list[Question]:
        """The questions in asking order: the original's file, else built from the official download."""
        path = self.question_path(root, split)
        if path.suffix == ".jsonl" and path.is_file():
            return read_jsonl_questions(path)
        with self._as_downloaded(root):
            return self.build(root, self.pick_split(split))

    @contextmanager
    def _as_downloaded(self, root: Path) -> Iterator[None]:
        """Turn what an official record lacks, or holds of another type, into an error of the user's data."""
        try:
            yield
        except KeyError as error:
            raise DataError(f"{self.name}: a record under {root} lacks the key {error}") from error
        except (TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{self.name}: a record under {root} is not of the official shape "
                f"({type(error).__name__}: {error}); LLAVA_TRACEBACK=1 shows where"
            ) from error

    def prepare(self, root: Path, path: Path, *, split: str | None = None) -> int:
        """Write the question file at `path` from the official download; the number of its questions.

        Raises:
            SettingsError: The benchmark's download is its question file (MMBench): there is nothing to write.
        """
        name = self.pick_split(split)
        if self.write_file is not None:
            with self._as_downloaded(root):
                return self.write_file(root, name, path)
        if path.suffix != ".jsonl":
            raise SettingsError(
                f"{self.name} is read as downloaded; {path.name} is not made from anything else"
            )
        with self._as_downloaded(root):
            questions = self.build(root, name)
        write_jsonl_questions(path, questions)
        return len(questions)

    def read_answers(self, path: Path) -> list[Answer]:
        """The answers in `path`, in any form this benchmark's answers come in."""
        return self.answers_from(path)

    def score(
        self,
        root: Path,
        answers: Sequence[Answer],
        *,
        split: str | None = None,
        truth: Path | None = None,
        allow_missing: bool = False,
    ) -> Scores:
        """Judge `answers` by the official rule. A headline without value means: only a server can tell.

        Raises:
            AnswersError: Answers are missing (unless `allow_missing`), contradict or answer other questions.
            DataError: The ground truth is absent or damaged.
        """
        with self._as_downloaded(truth or root):
            return self.judge(Task(root, self.pick_split(split), answers, allow_missing, truth))

    def write_submission(
        self,
        root: Path,
        answers: Sequence[Answer],
        path: Path,
        *,
        split: str | None = None,
        truth: Path | None = None,
        allow_missing: bool = False,
    ) -> None:
        """Write the file that the benchmark's server (or judge) takes, equal to the original's."""
        if not answers:
            raise AnswersError(f"{self.name}: there are no answers to send in")
        with self._as_downloaded(truth or root):
            self.submit(Task(root, self.pick_split(split), answers, allow_missing, truth), path)


def read_jsonl_questions(path: Path) -> list[Question]:
    """The questions of one of the original's jsonl files, in its order."""
    questions = []
    for line, row in read_jsonl(path):
        require_keys(row, ("question_id", "text"), f"{path}:{line}")
        image, category = row.get("image"), row.get("category", "default")
        questions.append(Question(row["question_id"], row["text"], image, category))
    return questions


def write_jsonl_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write `questions` as the original's jsonl: question_id, image, text, category."""
    write_jsonl(
        path,
        ({"question_id": q.id, "image": q.image, "text": q.text, "category": q.category} for q in questions),
    )


def require_keys(row: Any, keys: Iterable[str], where: str) -> None:
    """Check that `row` is a JSON object that has `keys`.

    Raises:
        DataError: It is not, or lacks one; the message starts with `where`.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, wanted a JSON object")
    missing = [key for key in keys if key not in row]
    if missing:
        raise DataError(f"{where}: lacks the key {', '.join(missing)}; it has {', '.join(row) or 'none'}")


def find(root: Path, *candidates: str) -> Path | None:
    """The first of `candidates` (paths or patterns under `root`) that exists, None when none does."""
    for candidate in candidates:
        for path in sorted(root.glob(candidate)):
            return path
    return None


def require_file(root: Path, *candidates: str, what: str) -> Path:
    """Like `find`, but absence is a DataError that says what is wanted and where it was looked for."""
    path = find(root, *candidates)
    if path is None:
        raise DataError(f"{root}: {what} not found; looked for {', '.join(candidates)}")
    return path


def options_text(question: str, options: Sequence[str]) -> str:
    """`question` followed by a line for each option: `A. ...`, `B. ...`."""
    return f"{question}\n{options_block(options)}" if options else question


def as_number(identifier: str) -> str | int:
    """An id of digits alone as an int, any other as it is (SEED's "101669" and "v1738")."""
    return int(identifier) if identifier.isdigit() else identifier
