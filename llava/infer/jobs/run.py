"""Answer one shard of a question file, asking only what has no answer yet and keeping answers as they come.

Knows files, shards and resuming. Knows no benchmark, and of the model only that an engine answers requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import shortuuid

from llava.errors import AnswersError, DataError, SettingsError
from llava.files import write_jsonl
from llava.image_reading import image_path, require_image_file
from llava.infer.digests import FileContent
from llava.infer.engine.requests import (
    Generation,
    ImageFile,
    ImageSource,
    ImageText,
    ModelChoice,
    Reply,
    Request,
)
from llava.infer.jobs.fingerprint import fingerprint_model
from llava.infer.jobs.journal import Entry, Journal, Key, row_key
from llava.infer.jobs.prompting import image_line, prompt_of, template, warn_of_other_template
from llava.infer.jobs.shards import JOURNAL, Shard, merge_shards, shard_positions
from llava.log import progress
from llava.schema import JsonObject, Question

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llava.infer.engine.load import Loaded

logger = logging.getLogger(__name__)

# Machines of one job start minutes apart, and the last shard may take longest.
WAIT_FOR_SHARDS_S = 24 * 3600.0


class Answerer(Protocol):
    """What answers requests: the engine, or another program before it."""

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) as answers come."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question as it is put to the model.

    Attributes:
        head: The start of its row in the answers file: `question_id`, ..., `prompt`.
        text: The question, without image token and template.
        image: The image it is about.
        tail: What follows the answer's `text` in the row.
    """

    head: JsonObject
    text: str
    image: ImageSource | None = None
    tail: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """One question file to answer, and with what: the flags of an answering command."""

    model: ModelChoice
    generation: Generation
    conv_mode: str
    question_file: Path
    answers_file: Path
    shard: Shard = field(default_factory=Shard)
    batch_size: int | None = None
    exact: bool = True
    overwrite: bool = False
    backend: str | None = None  # what answers before the engine does

    @property
    def journal_folder(self) -> Path:
        """The folder that keeps the answers as they come.

        Shard files N_I.jsonl of one folder share a journal, so that a rerun may use another N. Any other
        answers file has its own.
        """
        if self.answers_file.name == f"{self.shard.name}.jsonl":
            return self.answers_file.parent / JOURNAL
        return self.answers_file.with_name(self.answers_file.stem + "." + JOURNAL)


def asks_about_images(questions: Sequence[Question], image_folder: Path, *, source: Path) -> list[Ask]:
    """Return what to ask for `questions`, each about an image under `image_folder`.

    Raises:
        DataError: A question has no image under that folder; `source` is the file that the message names.
    """
    asks = []
    for number, question in enumerate(questions, start=1):
        where = f"{source}: question {number} (question_id {question.id})"
        path = image_path(image_folder, question.image, where)
        if not isinstance(question.text, str):
            raise DataError(
                f"{where}: its text is {type(question.text).__name__}, wanted a string", code="bad-question"
            )
        head = {"question_id": question.id, "prompt": question.text}
        asks.append(Ask(head, question.text, ImageFile(path)))
    return asks


def check_asks(job: AnswerJob, asks: Sequence[Ask], positions: Iterable[int]) -> None:
    """Check the questions at `positions` before any weight is read.

    Raises:
        DataError: There is no question, one is empty, or its image file is missing.
        SettingsError: --overwrite with several shards, of which others may be running.
    """
    if not asks:
        raise DataError(f"{job.question_file}: holds no question", code="no-questions")
    if job.overwrite and job.shard.count > 1:
        raise SettingsError(
            f"--overwrite is for one shard; remove {job.journal_folder} before {job.shard.count} start",
            code="overwrite-with-shards",
        )
    for position in positions:
        ask = asks[position]
        if not ask.text.strip():
            raise DataError(f"{_name(job, ask, position)}: the question is empty", code="empty-question")
        if isinstance(ask.image, ImageFile):
            try:
                require_image_file(ask.image.path)
            except DataError as error:
                raise DataError(f"{_name(job, ask, position)}: {error}", code=error.code) from error


def answer(
    job: AnswerJob,
    asks: Sequence[Ask],
    loader: Callable[[ModelChoice], Loaded] | None = None,
    *,
    open_first: Callable[[AnswerJob], Answerer] | None = None,
) -> None:
    """Answer this job's shard of `asks` and write its answers file, complete or not at all.

    Under torchrun or srun the ranks share one answers file: each answers its shard, and rank 0 waits for the
    others and writes the file.

    Args:
        job: The question file, the model, and which shard.
        asks: All questions of the question file.
        loader: Loads the model if there is something to ask; one that caches it serves several jobs.
        open_first: Opens what is asked in place of the engine. It may leave questions unanswered, so the
            answers file is not written: call again without it.

    Raises:
        AnswersError: Earlier answers are of another run, or another process is answering them.
        DataError: A question is empty, or its image is missing or broken; answers so far are kept.
    """
    positions = shard_positions([ask.image for ask in asks], job.shard.count, job.shard.index)
    check_asks(job, asks, positions)
    if not positions and not job.shard.launched:
        logger.info(
            f"shard {job.shard.index} of {job.shard.count} is empty: there are only {len(asks)} questions"
        )
        write_jsonl(job.answers_file, ())
        return
    job = replace(job, conv_mode=template(job.conv_mode, job.model.name))
    keys: list[Key] = [row_key(ask.head) for ask in asks]
    about = _about(job, asks)
    earlier = {} if job.overwrite else Journal.about(job.journal_folder)
    if job.model.dtype == "auto":
        about["dtype"] = earlier.get("dtype")  # of the machine that answered
    # Only a process that has transformers can have changed the model's classes.
    needs_torch = about != earlier or "transformers" in sys.modules
    if needs_torch:
        job, about = _resolve(job, about)
    journal = Journal.open(job.journal_folder, about, keys, overwrite=job.overwrite)
    with journal.writer(job.shard.name) as writer:
        done = journal.read()
        _check_keys(journal, done, keys)
        _check_images(job, asks, positions, done)
        to_ask = [position for position in positions if position not in done]
        if to_ask and not needs_torch:
            job, about = _resolve(job, about)
            Journal.open(job.journal_folder, about, keys)  # refuses what this machine would answer otherwise
        _log_what_is_left(job, len(positions), len(to_ask))
        if not job.shard.launched:
            job.answers_file.unlink(missing_ok=True)  # a stale file must not pass for this run's
        if to_ask:
            answerer = open_first(job) if open_first else _open_engine(job, loader)
            for position, reply in _replies(job, asks, to_ask, len(positions), answerer):
                entry = _entry(job, asks[position], position, reply)
                done[position] = replace(entry, by=job.backend) if open_first else entry
                writer.append(position, done[position])
    if open_first is not None:
        return
    if not job.shard.launched:
        write_jsonl(job.answers_file, (done[position].row for position in positions))
    elif job.shard.index == 0:
        merge_shards(job.journal_folder, job.answers_file, wait_s=WAIT_FOR_SHARDS_S)


def _open_engine(job: AnswerJob, loader: Callable[[ModelChoice], Loaded] | None) -> Answerer:
    """Load the model; imports torch and transformers, so only where there is something to ask."""
    from llava.infer.engine.engine import Engine
    from llava.infer.engine.load import load

    return Engine((loader or load)(job.model), job.generation, batch_size=job.batch_size, exact=job.exact)


def _replies(
    job: AnswerJob, asks: Sequence[Ask], positions: Sequence[int], total: int, answerer: Answerer
) -> Iterator[tuple[int, Reply]]:
    """Yield (position, reply) as answers come; `total` is the size of the shard."""
    warn_of_other_template(job.conv_mode, answerer.config)
    line = image_line(answerer.config)
    requests = []
    for position in positions:
        ask = asks[position]
        prompt = prompt_of(job.conv_mode, ask.text, line if ask.image else "")
        images = (ask.image,) if ask.image else ()
        requests.append(Request(prompt, images, _name(job, ask, position)))
    start = time.monotonic()
    name, done = f"shard {job.shard.index}", total - len(requests)
    for index, reply in progress(answerer.answer(requests), name=name, total=total, done=done):
        yield positions[index], reply
    seconds = time.monotonic() - start
    logger.info(f"{len(requests)} answers in {seconds:.1f} s ({len(requests) / seconds:.2f} a second)")


def _entry(job: AnswerJob, ask: Ask, position: int, reply: Reply) -> Entry:
    """Return what the journal keeps, with the row of the answers file, its keys in the original's order."""
    # Not random: the same model's answer to the same question has the same id in every run.
    name = json.dumps([job.model.name, position, ask.head])
    row: JsonObject = {
        **ask.head,
        "text": reply.text,
        **ask.tail,
        "answer_id": shortuuid.uuid(name=name),
        "model_id": job.model.name,
        "metadata": {},
    }
    image = reply.images[0] if reply.images else None
    return Entry(row, reply.margin, image, reply.lead, reply.lead_in_batch)


def _resolve(job: AnswerJob, about: JsonObject) -> tuple[AnswerJob, JsonObject]:
    """Complete the job and what its answers depend on by what only torch and transformers know."""
    from llava.infer.engine.load import find_changed_classes, resolve_device

    job = replace(job, model=resolve_device(job.model, job.shard.device))
    about = {**about, "dtype": job.model.dtype}
    if (change := find_changed_classes()) is not None:
        about["changed"] = change
    return job, about


def _about(job: AnswerJob, asks: Sequence[Ask]) -> JsonObject:
    """Return what the answers depend on, as far as flags and files say."""
    digest = hashlib.sha256()
    for ask in asks:
        # With its folder, so that train/1.jpg is not test/1.jpg; without the rest, so that data may move.
        file = "/".join(ask.image.path.parts[-2:]) if isinstance(ask.image, ImageFile) else None
        image = ask.image.base64 if isinstance(ask.image, ImageText) else file
        digest.update(json.dumps([ask.head, ask.text, ask.tail, image]).encode() + b"\n")
    about: JsonObject = {
        "model": job.model.name,
        **fingerprint_model(job.model.path, job.model.base),
        "dtype": job.model.dtype,
        "bits": 4 if job.model.load_4bit else 8 if job.model.load_8bit else 16,
        "questions": f"{len(asks)}, sha256 {digest.hexdigest()[:16]}",
        "conv_mode": job.conv_mode,
        "template": prompt_of(job.conv_mode, "..."),
        "temperature": job.generation.temperature,
        "max_new_tokens": job.generation.max_new_tokens,
        "num_beams": job.generation.num_beams,
        "exact": job.exact,
    }
    if job.backend is not None:
        about["backend"] = job.backend
    if job.generation.temperature > 0:
        about |= {"top_p": job.generation.top_p, "sampling_seed": job.generation.seed}
    return about


def _check_keys(journal: Journal, done: Mapping[int, Entry], keys: Sequence[Key]) -> None:
    for position, entry in done.items():
        if row_key(entry.row) != keys[position]:
            raise AnswersError(
                f"{journal.folder}: the answer to question {position + 1} has id or prompt of another; "
                "the file was changed by hand. Remove the folder and run again",
                code="changed-answers",
            )


def _check_images(
    job: AnswerJob, asks: Sequence[Ask], positions: Iterable[int], done: Mapping[int, Entry]
) -> None:
    """Check that the image files still hold what this shard's earlier answers are about."""
    changed = []
    is_still_there: dict[tuple[Path, FileContent | None], bool] = {}
    for position in positions:
        image = asks[position].image
        if position not in done or not isinstance(image, ImageFile):
            continue
        seen = (image.path, done[position].image)
        if seen not in is_still_there:
            is_still_there[seen] = seen[1] is not None and seen[1].is_still_in(image.path)
        if not is_still_there[seen]:
            changed.append(position)
    if changed:
        raise AnswersError(
            f"{job.journal_folder}: {len(changed)} answers are about other images than there are now, first "
            f"that to {_name(job, asks[changed[0]], changed[0])}. Put the images back, write to another "
            "folder, or discard the answers: --overwrite, or OVERWRITE=1 for the scripts",
            code="changed-images",
        )


def _log_what_is_left(job: AnswerJob, total: int, left: int) -> None:
    shard = f"shard {job.shard.index} of {job.shard.count}: " if job.shard.count > 1 else ""
    known = (
        f", {total - left} have their answer from before (in {job.journal_folder})" if left < total else ""
    )
    logger.info(f"{shard}{total} questions{known}; {left} to ask")


def _name(job: AnswerJob, ask: Ask, position: int) -> str:
    return f"{job.question_file}: question {position + 1} (question_id {ask.head['question_id']})"
