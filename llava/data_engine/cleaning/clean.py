"""Turn a round's responses into engine records: `llava engine clean rounds/1`.

Reads requests.jsonl and responses.jsonl; writes accepted.jsonl, rejected.jsonl and clean.json. The responses
are read twice: once to check them all and to learn the types' words, once to judge them batch by batch.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import IO

from llava.data_engine.cleaning.blind import MOST, BlindItem, probe_blind
from llava.data_engine.cleaning.consistency import Answerer, Reading, judge_reading
from llava.data_engine.cleaning.contamination import Contamination
from llava.data_engine.cleaning.duplicates import BenchmarkIndex, SeenQuestions
from llava.data_engine.cleaning.inputs import (
    Asked,
    complete_record,
    earlier_files,
    read_accepted,
    read_asked,
    sample_questions,
)
from llava.data_engine.cleaning.parse import parse_response
from llava.data_engine.cleaning.positions import balance_report, shuffle_options
from llava.data_engine.cleaning.references import collect_references
from llava.data_engine.cleaning.rules import Draft, check_record, make_draft
from llava.data_engine.cleaning.types import LearnedTypes, TypeCheck, TypedQuestion, check_keywords
from llava.data_engine.cleaning.words import normal_words
from llava.data_engine.loop.round import ACCEPTED, REJECTED, REQUESTS, RESPONSES, SCHEMA, file_sha256
from llava.data_engine.text import Unusable
from llava.files import atomic_write, read_jsonl, write_json
from llava.schema import JsonObject, Question

REPORT = "clean.json"
_BATCH = 5_000
# What rejected.jsonl keeps of a response that could not be parsed, in characters.
_LONGEST_EXCERPT = 2_000

ImageCheck = Callable[[str], str | None]
"""From an image's path to the benchmark that has the same picture, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningSettings:
    """How to clean.

    Attributes:
        seed: Of the shuffled options, the samples and the classifiers.
        round: The round's number, which the requests must have; None takes any one round.
        questions: The benchmarks' questions, by benchmark; see `references.read_benchmarks`.
        type_check: Judges the questions' types instead of keywords and the classifier.
        answer: Answers questions for the consistency test; None leaves that test out.
        guess: Guesses answers without the image, as `blind.probe_blind` does, beside that probe.
        image_check: Compares pictures; None compares images by name and COCO id only.
        checked: False accepts every record that can be read, to find out what the rules are worth.
    """

    seed: int = 42
    round: int | None = None
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    type_check: TypeCheck | None = None
    answer: Answerer | None = None
    guess: Callable[[Sequence[BlindItem]], JsonObject] | None = None
    image_check: ImageCheck | None = None
    checked: bool = True


def clean_round(folder: Path, settings: CleaningSettings) -> JsonObject:
    """Clean the responses in a round's folder and return what clean.json says.

    The same inputs and settings give the same files, byte for byte.

    Raises:
        DataError: A file is missing or damaged, or the responses are of another round.
    """
    asked = read_asked(folder / REQUESTS, number=settings.round, whole=settings.answer is not None)
    responses, questions = sample_questions(folder / RESPONSES, asked)
    checks = [settings.type_check] if settings.type_check else [check_keywords]
    if not settings.type_check:
        checks.append(LearnedTypes(questions, seed=settings.seed))
    earlier = earlier_files(folder)
    seen = SeenQuestions()
    for path in earlier:
        for image, question, right in read_accepted(path):
            seen.add(image, normal_words(question), normal_words(right))
    with atomic_write(folder / ACCEPTED) as accepted, atomic_write(folder / REJECTED) as rejected:
        cleaner = _Cleaner(settings, asked, checks, seen, accepted, rejected)
        rows = _read_records(folder / RESPONSES, asked, cleaner.reject)
        while batch := list(islice(rows, _BATCH)):
            cleaner.judge(batch)
    files = [folder / REQUESTS, folder / RESPONSES, *earlier]
    inputs = {"/".join(path.parts[-2:]): file_sha256(path) for path in files}
    report = {
        "schema": SCHEMA,
        "inputs": inputs,
        "seed": settings.seed,
        "checked": settings.checked,
        "responses": responses,
        **cleaner.report(),
    }
    write_json(folder / REPORT, report)
    return report


def summarize_cleaning(report: JsonObject) -> str:
    """Return one line: what was read, what was accepted, what was dropped and why."""
    reasons = ", ".join(f"{rule} {count:,}" for rule, count in report["rejected"].items())
    probes = {"blind probe": report["blind"], "guessed by the provider": report.get("guessed", {})}
    probed = "; ".join(
        f"{name} {100 * probe['accuracy']:.1f} % ({'above' if probe['flagged'] else 'at'} chance)"
        for name, probe in probes.items()
        if probe.get("accuracy") is not None
    )
    probed = probed or "too few for the blind probe"
    return (
        f"clean: {report['responses']:,} responses, {report['accepted']:,} records accepted,"
        f" {sum(report['rejected'].values()):,} rejected ({reasons or 'none'}); {probed}"
    )


def _read_records(
    path: Path, asked: Mapping[str, Asked], reject: Callable[[str, Unusable, object], None]
) -> Iterator[tuple[str, JsonObject]]:
    """Yield (request id, record with the request's image and type); what is no record goes to `reject`."""
    for _, response in read_jsonl(path):
        name, text = response["id"], response.get("text")
        try:
            rows = parse_response(text)
        except Unusable as fault:
            reject(name, fault, str(text)[:_LONGEST_EXCERPT])
            continue
        for row in rows:
            yield name, complete_record(row, asked[name])


class _Cleaner:
    """Judges records batch by batch, writes them, and counts."""

    def __init__(
        self,
        settings: CleaningSettings,
        asked: Mapping[str, Asked],
        checks: Sequence[TypeCheck],
        seen: SeenQuestions,
        accepted: IO[str],
        rejected: IO[str],
    ) -> None:
        references = collect_references(settings.questions)
        self._settings, self._asked, self._checks, self._seen = settings, asked, checks, seen
        self._accepted, self._rejected = accepted, rejected
        self._index = BenchmarkIndex(references, seed=settings.seed)
        self._contamination = Contamination(references)
        self._random = random.Random(settings.seed)
        self._sample: list[BlindItem] = []
        self._count = 0
        self._reasons: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        self._given: Counter[int] = Counter()
        self._shuffled: Counter[int] = Counter()

    def reject(self, request: str, fault: Unusable, record: object) -> None:
        """Count a rejection and write its example."""
        self._reasons[fault.reason] += 1
        line = {"request": request, "rule": fault.reason, "detail": fault.detail[:200], "record": record}
        self._rejected.write(json.dumps(line) + "\n")

    def judge(self, batch: Sequence[tuple[str, JsonObject]]) -> None:
        """Accept or reject each record; the first rule that finds something is the reason."""
        drafts: list[Draft] = []
        for request, row in batch:
            try:
                drafts.append(self._draft(request, row))
            except Unusable as fault:
                self.reject(request, fault, row)
        if not self._settings.checked:
            for draft in drafts:
                self._accept(draft)
            return
        others = self._find_other_types(drafts)
        lookalikes = self._index.find_questions(drafts)
        left = [
            draft
            for draft, other, lookalike in zip(drafts, others, lookalikes, strict=True)
            if not (other or lookalike)
        ]
        disagreements = self._find_disagreements(left)
        for draft, other, lookalike in zip(drafts, others, lookalikes, strict=True):
            found: tuple[str, str] | None = None
            if other:
                found = "off_type", f"asked for {draft.type}, looks like {other}"
            elif lookalike:
                found = "benchmark_question", f"{lookalike.benchmark} {lookalike.id}: {lookalike.question}"
            found = found or self._find_repeat(draft) or disagreements.get(id(draft))
            if found:
                self.reject(draft.request, Unusable(*found), draft.row)
            else:
                self._accept(draft)

    def report(self) -> JsonObject:
        """Return the counts of all that was judged."""
        return {
            "accepted": self._count,
            "types": dict(sorted(self._types.items())),
            "rejected": dict(self._reasons.most_common()),
            "positions": {"given": balance_report(self._given), "shuffled": balance_report(self._shuffled)},
            "blind": probe_blind(self._sample, seed=self._settings.seed),
            **({"guessed": self._settings.guess(self._sample)} if self._settings.guess else {}),
            "contamination": self._contamination.report(),
        }

    def _draft(self, request: str, row: JsonObject) -> Draft:
        check = check_record if self._settings.checked else make_draft
        return check(row, request, self._asked[request].type)

    def _find_other_types(self, drafts: Sequence[Draft]) -> list[str | None]:
        questions = [TypedQuestion(draft.request, draft.record.instruction, draft.type) for draft in drafts]
        verdicts = [check(questions) for check in self._checks]
        return [next(filter(None, found), None) for found in zip(*verdicts, strict=True)]

    def _find_repeat(self, draft: Draft) -> tuple[str, str] | None:
        image = draft.record.image
        benchmark = self._index.find_image(image, self._asked[draft.request].coco_id)
        if benchmark is None and self._settings.image_check:
            benchmark = self._settings.image_check(image)
        if benchmark:
            return "benchmark_image", f"{image} is an image of {benchmark}"
        earlier = self._seen.find(image, draft.question, draft.right)
        return ("duplicate", f"like {earlier!r}") if earlier else None

    def _find_disagreements(self, drafts: Sequence[Draft]) -> dict[int, tuple[str, str]]:
        """Return what the second reader finds wrong, by the draft's identity."""
        if self._settings.answer is None:
            return {}
        readings = [self._reading(draft) for draft in drafts]
        answers = self._settings.answer(readings)
        return {
            id(draft): found
            for draft, reading, answer in zip(drafts, readings, answers, strict=True)
            if (found := judge_reading(reading, draft.correct, answer))
        }

    def _reading(self, draft: Draft) -> Reading:
        choice, request = draft.record.choice, self._asked[draft.request].row
        assert choice is not None
        assert request is not None
        return Reading(draft.record.instruction, choice.options, request)

    def _accept(self, draft: Draft) -> None:
        record, given = draft.record, draft.record.choice
        assert given is not None
        choice = shuffle_options(given, f"{record.image}\n{record.instruction}", self._settings.seed)
        right = choice.options[choice.correct]
        row: JsonObject = {
            "instruction": record.instruction,
            "answer": record.answer or right,
            "short_answer": record.short_answer or right,
            "options": list(choice.options),
            "choice_answer": ascii_uppercase[choice.correct],
            "image": record.image,
            **{key: draft.row[key] for key in ("qtype", "question_type") if key in draft.row},
            "request": draft.request,
        }
        self._accepted.write(json.dumps(row) + "\n")
        self._seen.add(record.image, draft.question, draft.right)
        self._contamination.add(draft.question, draft.request)
        self._given[given.correct] += 1
        self._shuffled[choice.correct] += 1
        self._types[draft.type] += 1
        self._sample_for_probe(
            BlindItem(record.image, draft.type, record.instruction, choice.options, choice.correct)
        )
        self._count += 1

    def _sample_for_probe(self, item: BlindItem) -> None:
        """Keep an even sample of what was accepted (reservoir sampling)."""
        if len(self._sample) < MOST:
            self._sample.append(item)
        elif (place := self._random.randrange(self._count + 1)) < MOST:
            self._sample[place] = item
