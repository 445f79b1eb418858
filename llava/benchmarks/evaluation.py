"""The steps of evaluating one model on one benchmark that need no model: prepare, score, submit."""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.benchmarks.aggregate import degenerate_texts
from llava.benchmarks.answers import AllowMissing
from llava.benchmarks.base import Benchmark, Evaluation, Task, Writer
from llava.errors import DataError, SettingsError
from llava.schema import JsonObject, Scores
from llava.scoring.metrics import (
    DETAILS,
    PARTIAL,
    format_interval,
    format_score,
    format_table,
    write_scores,
)  # fmt: skip

logger = logging.getLogger(__name__)
METRICS = "metrics.json"
# Bytes; a file may have 255, and suffixes are added.
_LONGEST_NAME = 200


def require_model_name(name: str) -> None:
    """Check that a model's name can be part of file names without leaving the folder they are in.

    Raises:
        SettingsError: It is empty, absolute, has a part `..`, starts like a flag, or no terminal can show it.
    """
    parts = name.split("/")
    is_path_out = any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_NAME for part in parts)
    if is_path_out or name.startswith("-") or not name.isprintable():
        raise SettingsError(
            f"the model's name is {name!r}, wanted one for its files, such as llava-v1.5-7b: not empty or "
            "absolute, without '..', not starting with '-'; give another --name",
            code="bad-name",
        )


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """One model on one split of a benchmark, with the places of its files.

    Attributes:
        benchmark: The benchmark.
        root: The benchmark's folder.
        split: Which questions.
        name: What the model's files are called.
        limit: How many questions are asked, None for all. Of a limited run nothing is sent in.
    """

    benchmark: Benchmark
    root: Path
    split: str
    name: str
    limit: int | None = None

    @property
    def evaluation(self) -> Evaluation:
        """How the split is asked."""
        return self.benchmark.evaluation_for(self.split)

    @property
    def question_file(self) -> Path:
        """The question file."""
        return self.benchmark.question_path(self.root, self.split)

    @property
    def answers(self) -> Path:
        """The folder of the shards' answers, their journal and metrics.json."""
        return self._path(self.evaluation.answers)

    @property
    def merged(self) -> Path:
        """The file of all answers."""
        return self._path(self.evaluation.merged)

    def _path(self, template: str) -> Path:
        return self.root / template.format(name=self.name, file=self.question_file.stem)

    def _submissions(self) -> Iterator[tuple[Path, Writer]]:
        if self.evaluation.submission:
            yield self._path(self.evaluation.submission), self.benchmark.submit
        for template, writer in self.benchmark.also_submit.items():
            yield self._path(template), writer

    def check_data(self) -> None:
        """Check that the benchmark's files are there.

        Raises:
            DataError: One is missing; the message says where to get it.
        """
        if missing := self.benchmark.missing(self.root, self.split):
            raise DataError(
                f"{self.benchmark.name}: {self.root} lacks {', '.join(missing)}; get it from "
                f"{self.benchmark.download}",
                code="missing-download",
            )

    def prepare(self) -> None:
        """Write the question files that are not there from the official download."""
        for split in (self.split, *self.evaluation.also_prepare):
            path = self.benchmark.question_path(self.root, split)
            if not path.is_file():
                count = self.benchmark.prepare(self.root, path, split=split)
                sys.stdout.write(f"wrote {path}: {self.benchmark.describe_count(count, split)}\n")

    def remove_results(self) -> None:
        """Remove what was made of this model's answers: merged file, scores and submissions."""
        upload = self.answers / f"submission{self.benchmark.submission_suffix}"
        for path in (self.merged, self.answers / METRICS, upload, *(p for p, _ in self._submissions())):
            for file in path.glob("*.txt") if path.is_dir() else [path]:
                file.unlink(missing_ok=True)

    def submit(self) -> None:
        """Write the files that the benchmark's server, judge or own program takes; none of a limited run."""
        if self.limit:
            logger.info(f"{self.benchmark.name}: nothing to send in is written of a limited run (--limit)")
            return
        for path, writer in self._submissions():
            answers = self.benchmark.read_answers(self.merged)
            self.benchmark.write_submission(self.root, answers, path, split=self.split, writer=writer)
            sys.stdout.write(f"wrote {path}\n")

    def score(self, *, answered_at: Path, extra: JsonObject | None = None) -> Scores | None:
        """Print the scores and write metrics.json; None where only a server or judge can tell.

        Args:
            answered_at: A file as old as the answers: a judge's older grades are of other answers.
            extra: Further keys for metrics.json.
        """
        file: Path | None = self.merged
        if self.evaluation.grades:
            file = self._newest_grades(answered_at)
        if file is None or not self.evaluation.is_scored:
            given = self.benchmark.read_answers(self.merged) if self.merged.is_file() else []
            for text in degenerate_texts([answer.text for answer in given]):
                logger.warning(f"{self.benchmark.name}: {text}")
            logger.info(f"{self.benchmark.name}: no scores here; its server or judge takes what was written")
            return None
        allow_missing: AllowMissing = "left out" if self.limit else False
        task = Task(self.root, self.split, (), allow_missing)
        return score_file(self.benchmark, task, file, self.answers, extra=extra)

    def _newest_grades(self, answered_at: Path) -> Path | None:
        newest: Path | None = None
        for template in self.evaluation.grades:
            pattern = template.format(name=glob.escape(self.name))
            for file in sorted(self.root.glob(pattern)):
                if _modified(file) < _modified(answered_at):
                    logger.warning(f"left out: {file} is older than the answers")
                elif newest is None or _modified(file) > _modified(newest):
                    newest = file
        return newest


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def score_file(
    benchmark: Benchmark,
    task: Task,
    answers: Path,
    save_path: Path | None,
    *,
    extra: JsonObject | None = None,
) -> Scores:
    """Score an answers file, print the scores, and write them to `save_path`/metrics.json.

    Where only a server can score, its submission file is written there, too.

    Args:
        benchmark: The benchmark.
        task: The benchmark's folder, the split and the settings; its answers are not used.
        answers: The file of answers, or of a judge's grades.
        save_path: The folder to write to, None to print only.
        extra: Further keys for metrics.json.
    """
    settings: JsonObject = {"split": task.split, "truth": task.truth, "allow_missing": task.allow_missing}
    given = benchmark.read_answers(answers)
    scores = benchmark.score(task.root, given, **settings)
    sys.stdout.write(score_table(scores) + "\n")
    if save_path:
        write_scores(save_path, scores, extra=extra)
    if scores.get(scores.headline).value is None:
        if task.allow_missing == "left out":
            logger.info(
                f"{benchmark.name} has no local score, and nothing is sent in of a limited run (--limit)"
            )
        elif save_path is None:
            logger.warning(
                f"{benchmark.name} has no local score; `submit` writes the file for its server or judge"
            )
        else:
            path = save_path / f"submission{benchmark.submission_suffix}"
            benchmark.write_submission(task.root, given, path, **settings)
            sys.stdout.write(f"{benchmark.name} has no local score; wrote {path} for its server or judge\n")
    return scores


def score_table(scores: Scores) -> str:
    """Format scores for a terminal: group and name, n, value, 95 % interval, note, judge; then the counts.

    `*` marks the scores that papers quote. Warnings come first, and mark each score with `!`.
    """
    shown = [score for score in scores.scores if score.group not in DETAILS]
    rows = [
        (
            s.name if s.group in {"total", "type"} else f"{s.group}: {s.name}",
            "*" if s.quoted else "",
            s.count,
            format_score(scores, s),
            format_interval(s.low, s.high),
            ", ".join(filter(None, (s.note, scores.judge and f"judge: {scores.judge}"))),
        )
        for s in shown
    ]
    lines = [f"WARNING: {text}" for text in scores.warnings]
    lines.append(format_table((scores.benchmark, "", "n", "score", "95 % interval", ""), rows))
    if any(score.quoted for score in shown):
        lines.append("* papers quote this number")
    if any(score.is_partial for score in shown):
        lines.append(PARTIAL)
    lines.append(", ".join(f"{name} {count}" for name, count in scores.counts.items()))
    return "\n".join([*lines, *scores.notes])
