"""One run: this process's share of the questions, asked where they have no answer yet, written as they come.

Knows files, chunks and resuming; knows no benchmark, and of the model only that an engine answers requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shortuuid

from llava.errors import AnswersError, DataError, SettingsError
from llava.files import write_jsonl
from llava.infer.engine.requests import (
    Generation,
    ImageFile,
    ImageSource,
    ImageText,
    ModelChoice,
    Reply,
    Request,
)
from llava.infer.jobs.fingerprint import checkpoint_fingerprint, named_base
from llava.infer.jobs.journal import Entry, Journal, Key, row_key
from llava.infer.jobs.prompting import image_line, prompt_of, template
from llava.infer.jobs.shards import JOURNAL, Chunk, merge, share
from llava.log import progress
from llava.schema import Question

if TYPE_CHECKING:
    from llava.infer.engine.load import Loaded

logger = logging.getLogger(__name__)

# JSON can write it, no tokenizer can read it.
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
# Machines of one job start minutes apart, and the last chunk may be the longest.
_WAIT_FOR_OTHERS_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One question as a run puts it.

    `head` opens its row of the answers file (`question_id` first, `prompt` among them), `tail` follows the
    answer's `text`. `text` is what the model is asked, without image token and template.
    """

    head: dict[str, Any]
    text: str
    image: ImageSource | None = None
    tail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What the flags of an answering command say."""

    model: ModelChoice
    generation: Generation
    conv_mode: str
    question_file: Path
    answers_file: Path
    chunk: Chunk = field(default_factory=Chunk)
    batch_size: int | None = None
    exact: bool = True
    overwrite: bool = False

    @property
    def journal_folder(self) -> Path:
        """Where answers are kept as they come.

        Chunk files N_I.jsonl of one folder share one journal, so that a rerun may use another N. Any other
        answers file has a journal of its own.
        """
        if self.answers_file.name == f"{self.chunk.name}.jsonl":
            return self.answers_file.parent / JOURNAL
        return self.answers_file.with_name(self.answers_file.stem + "." + JOURNAL)


def asks_about_images(questions: Sequence[Question], image_folder: Path, *, source: Path) -> list[Ask]:
    """What to ask for `questions` that each name an image under `image_folder`.

    Raises:
        DataError: A question names none; `source` is the file the message speaks of.
    """
    asks = []
    for number, question in enumerate(questions, start=1):
        if not isinstance(question.image, str) or not question.image:
            raise DataError(
                f"{source}: question {number} (question_id {question.id}) has image {question.image!r}, "
                "wanted a path under --image-folder"
            )
        if not isinstance(question.text, str):
            raise DataError(f"{source}: question {number} (question_id {question.id}): its text is no text")
        head = {"question_id": question.id, "prompt": question.text}
        asks.append(Ask(head, question.text, ImageFile(image_folder / question.image)))
    return asks


def check_asks(run: Run, asks: Sequence[Ask], mine: Iterable[int]) -> None:
    """Refuse, before any weight is read, what can be seen to be wrong with the questions at `mine`.

    Raises:
        DataError: There is none, one is empty, or its image file is missing.
        SettingsError: Earlier answers are to go while other chunks may be at work.
    """
    if not asks:
        raise DataError(f"{run.question_file}: holds no question")
    if run.overwrite and run.chunk.count > 1:
        raise SettingsError(
            f"--overwrite is for one chunk; remove {run.journal_folder} before {run.chunk.count} start"
        )
    for position in mine:
        ask = asks[position]
        if not ask.text.strip():
            raise DataError(f"{_name(run, ask, position)}: the question is empty")
        if HALF_CHARACTER.search(ask.text):
            raise DataError(
                f"{_name(run, ask, position)}: its text holds half a character (a lone surrogate)"
            )
        if isinstance(ask.image, ImageFile) and not ask.image.path.is_file():
            raise DataError(f"{_name(run, ask, position)}: {ask.image.path}: no such image file")


def answer(run: Run, asks: Sequence[Ask], loader: Callable[[ModelChoice], Loaded] | None = None) -> None:
    """Answer this run's chunk of `asks` and write its answers file, complete or not at all.

    Under torchrun or srun the processes share one answers file: each answers its chunk, and the first waits
    for the others and writes the file.

    Args:
        run: What the flags say.
        asks: All questions of the question file.
        loader: What loads the model where there is something to ask; one that keeps it serves several runs.

    Raises:
        AnswersError: Earlier answers are of another run, or another process is at work on them.
        DataError: A question is empty or its image is missing or broken; answers given so far are kept.
    """
    mine = share([ask.image for ask in asks], run.chunk.count, run.chunk.index)
    check_asks(run, asks, mine)
    if not mine and not run.chunk.launched:
        logger.info(f"chunk {run.chunk.index} of {run.chunk.count}: no question, there are only {len(asks)}")
        write_jsonl(run.answers_file, ())
        return
    run = replace(run, conv_mode=template(run.conv_mode, run.model.name))

    from llava.infer.engine.load import resolve_device  # torch: not before the questions are known to be good

    run = replace(run, model=resolve_device(run.model, run.chunk.device))
    keys: list[Key] = [row_key(ask.head) for ask in asks]
    journal = Journal.open(run.journal_folder, _about(run, asks), keys, overwrite=run.overwrite)
    with journal.writer(run.chunk.name) as writer:
        done = journal.read()
        _check_keys(journal, done, keys)
        to_ask = [position for position in mine if position not in done]
        _say_what_is_left(run, len(mine), len(to_ask))
        if not run.chunk.launched:
            run.answers_file.unlink(missing_ok=True)  # a stale file must not pass for this run's
        if to_ask:
            for position, reply in _replies(run, asks, to_ask, len(mine), loader):
                done[position] = Entry(_row(run, asks[position], position, reply), reply.margin)
                writer.append(position, done[position])
    if not run.chunk.launched:
        write_jsonl(run.answers_file, (done[position].row for position in mine))
    elif run.chunk.index == 0:
        merge(run.journal_folder, run.answers_file, wait_s=_WAIT_FOR_OTHERS_S)


def _replies(
    run: Run,
    asks: Sequence[Ask],
    positions: Sequence[int],
    mine: int,
    loader: Callable[[ModelChoice], Loaded] | None,
) -> Iterator[tuple[int, Reply]]:
    """(position, reply) as the engine gives them. `mine` is how many the chunk has, answered ones too."""
    from llava.infer.engine.engine import (
        Engine,  # torch and transformers, only where there is something to ask
    )
    from llava.infer.engine.load import load

    engine = Engine((loader or load)(run.model), run.generation, batch_size=run.batch_size, exact=run.exact)
    line = image_line(engine.config)
    requests = []
    for position in positions:
        ask = asks[position]
        prompt = prompt_of(run.conv_mode, ask.text, line if ask.image else "")
        images = (ask.image,) if ask.image else ()
        requests.append(Request(prompt, images, _name(run, ask, position)))
    began = time.monotonic()
    name, done = f"shard {run.chunk.index}", mine - len(requests)
    for index, reply in progress(engine.answer(requests), name=name, total=mine, done=done):
        yield positions[index], reply
    seconds = time.monotonic() - began
    logger.info(f"{len(requests)} answers in {seconds:.1f} s ({len(requests) / seconds:.2f} a second)")


def _row(run: Run, ask: Ask, position: int, reply: Reply) -> dict[str, Any]:
    """A row of the answers file, keys in the original's order."""
    # Derived, not drawn: the same model's answer to the same question has the same id in every run.
    name = json.dumps([run.model.name, position, ask.head])
    return {
        **ask.head,
        "text": reply.text,
        **ask.tail,
        "answer_id": shortuuid.uuid(name=name),
        "model_id": run.model.name,
        "metadata": {},
    }


def _about(run: Run, asks: Sequence[Ask]) -> dict[str, Any]:
    """What the answers depend on."""
    digest = hashlib.sha256()
    for ask in asks:
        # With its folder, so that train/1.jpg is not test/1.jpg; without the rest, so that data may move.
        file = "/".join(ask.image.path.parts[-2:]) if isinstance(ask.image, ImageFile) else None
        image = ask.image.base64 if isinstance(ask.image, ImageText) else file
        digest.update(json.dumps([ask.head, ask.text, ask.tail, image]).encode() + b"\n")
    base = run.model.base or named_base(run.model.path)
    about: dict[str, Any] = {
        "model": run.model.name,
        "weights": checkpoint_fingerprint(run.model.path),
        "base": base and checkpoint_fingerprint(base, near=[run.model.path]),
        "dtype": run.model.dtype,
        "bits": 4 if run.model.load_4bit else 8 if run.model.load_8bit else 16,
        "questions": f"{len(asks)}, sha256 {digest.hexdigest()[:16]}",
        "conv_mode": run.conv_mode,
        "temperature": run.generation.temperature,
        "max_new_tokens": run.generation.max_new_tokens,
        "num_beams": run.generation.num_beams,
        "exact": run.exact,
    }
    if run.generation.temperature > 0:
        about |= {"top_p": run.generation.top_p, "sampling_seed": run.generation.seed}
    return about


def _check_keys(journal: Journal, done: Mapping[int, Entry], keys: Sequence[Key]) -> None:
    for position, entry in done.items():
        if row_key(entry.row) != keys[position]:
            raise AnswersError(
                f"{journal.folder}: the answer to question {position + 1} has id or prompt of another; "
                "the file was changed by hand. Remove the folder and run again"
            )


def _say_what_is_left(run: Run, mine: int, left: int) -> None:
    chunk = f"chunk {run.chunk.index} of {run.chunk.count}: " if run.chunk.count > 1 else ""
    known = f", {mine - left} have their answer from before (in {run.journal_folder})" if left < mine else ""
    logger.info(f"{chunk}{mine} questions{known}; {left} to ask")


def _name(run: Run, ask: Ask, position: int) -> str:
    return f"{run.question_file}: question {position + 1} (question_id {ask.head['question_id']})"
