"""Report how much of the accepted records' wording each benchmark shares, with examples.

The common tools compare documents by 13 words in a row; our questions have 67 characters, about 12 words.
Here five words in a row count, unless the benchmark has them in several questions ("what is the color of").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from llava.data_engine.cleaning.references import Reference
from llava.data_engine.text import digest
from llava.schema import JsonObject
from llava.scoring.intervals import wilson

WORDS = 5
# The share of a question's runs of words that makes it suspect.
SUSPECT = 0.5
EXAMPLES = 10


class Contamination:
    """Counts, benchmark by benchmark, the records that share most of their wording with its questions."""

    def __init__(self, references: Sequence[Reference]) -> None:
        runs: dict[str, Counter[int]] = {}
        for reference in references:
            runs.setdefault(reference.benchmark, Counter()).update(set(_runs(reference.question)))
        self._runs = {name: {run for run, n in counts.items() if n == 1} for name, counts in runs.items()}
        self._questions = Counter(reference.benchmark for reference in references)
        self._suspects: Counter[str] = Counter()
        self._examples: dict[str, list[JsonObject]] = {name: [] for name in runs}
        self._records = 0

    def add(self, question: str, request: str) -> None:
        """Count one accepted question, as `normal_words` returns it."""
        self._records += 1
        runs = list(_runs(question))
        for name, known in self._runs.items():
            share = sum(run in known for run in runs) / max(1, len(runs))
            if share >= SUSPECT:
                self._suspects[name] += 1
                if len(self._examples[name]) < EXAMPLES:
                    example = {"request": request, "question": question, "share": round(share, 3)}
                    self._examples[name].append(example)

    def report(self) -> JsonObject:
        """Return by benchmark its questions, the suspect records, their share with interval, examples."""
        return {
            name: {
                "questions": self._questions[name],
                "suspects": self._suspects[name],
                "share": self._suspects[name] / max(1, self._records),
                **dict(zip(("low", "high"), wilson(self._suspects[name], self._records), strict=True)),
                "examples": self._examples[name],
            }
            for name in sorted(self._runs)
        }


def _runs(question: str) -> Iterator[int]:
    words = question.split()
    for start in range(len(words) - WORDS + 1):
        yield digest(" ".join(words[start : start + WORDS]))
