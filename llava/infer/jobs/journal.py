"""Keep the answers so far, so that no crash loses one and no two runs mix. Needs no torch.

A journal is a folder: `run.json` says which model, questions and settings the answers belong to, and an
append-only `N_I.jsonl` of each shard has a line for each answer as it came: the fields of an `Entry`, and its
`position`, which counts questions from 0 through the whole file, so that a later run may use any number of
shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from llava.errors import AnswersError
from llava.files import read_json, write_json
from llava.infer.digests import FileContent
from llava.infer.engine.rounding import describe_rounding
from llava.json_text import parse_json
from llava.schema import JsonObject, RecordId
from llava.temporary import name_in_errors

logger = logging.getLogger(__name__)

Key = tuple[RecordId, str]
"""Identifies a question in an answers file: its id and the logged prompt, as ids may repeat."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer.

    Attributes:
        row: Its row of the answers file.
        margin: As of a `Reply`, and so are `lead` and `lead_in_batch`.
        image: What its image file held.
        by: The backend that answered, None for the engine.
    """

    row: JsonObject
    margin: float | None = None
    image: FileContent | None = None
    lead: float | None = None
    lead_in_batch: float | None = None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal of `total` questions whose keys, in order, have the digest `keys_sha256`."""

    folder: Path
    total: int
    keys_sha256: str

    @classmethod
    def open(
        cls, folder: Path, about: JsonObject, keys: Sequence[Key], *, overwrite: bool = False
    ) -> Journal:
        """Open the journal in `folder`, or make one.

        Args:
            folder: The journal's own folder.
            about: What the answers depend on: model, questions, settings. JSON values only.
            keys: The key of every question, in order.
            overwrite: Discard earlier answers first.

        Raises:
            AnswersError: The folder's answers belong to another model, question file or setting.
        """
        if overwrite:
            cls.discard(folder)
        folder.mkdir(parents=True, exist_ok=True)
        digest = keys_digest(keys)
        record = {"about": dict(about), "questions": len(keys), "keys_sha256": digest}
        with _locked(folder / "folder.lock"):
            if (folder / "run.json").is_file():
                _check_same_run(folder, record)
            elif any(folder.glob("*_*.jsonl")):
                raise AnswersError(
                    f"{folder}: answers without their run.json, so their model is unknown; remove the folder",
                    code="answers-without-run",
                )
            else:
                write_json(folder / "run.json", record)
        return cls(folder, len(keys), digest)

    @classmethod
    def existing(cls, folder: Path) -> Journal:
        """Open the journal that is in `folder`.

        Raises:
            AnswersError: There is none.
        """
        path = folder / "run.json"
        if not path.is_file():
            raise AnswersError(f"{folder}: no run.json, so no run has answered here", code="no-journal")
        record = read_json(path)
        return cls(folder, record["questions"], record["keys_sha256"])

    @staticmethod
    def about(folder: Path) -> JsonObject:
        """Return what the answers in `folder` depend on, as given to `open`; empty if there are none."""
        path = folder / "run.json"
        found: JsonObject = read_json(path).get("about", {}) if path.is_file() else {}
        return found

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete the journal in `folder`, as `--overwrite` asks; do nothing if there is none.

        Raises:
            AnswersError: A process is writing to it.
        """
        with ExitStack() as locks:
            for lock in sorted(folder.glob("*.lock")):
                locks.enter_context(_locked(lock, f"{folder} is in use"))
            if folder.is_dir():
                shutil.rmtree(folder)
                logger.info(f"{folder}: earlier answers discarded")

    def read(self) -> dict[int, Entry]:
        """Read every answer so far, by position, from all shards.

        A last line that a killed process left incomplete is dropped with a message; it is asked again.

        Raises:
            AnswersError: A line is damaged or of another model, or one question has two different answers.
        """
        found: dict[int, Entry] = {}
        for path in sorted(self.folder.glob("*_*.jsonl")):
            for where, position, entry in _read_entries(path):
                if not 0 <= position < self.total:
                    raise AnswersError(
                        f"{where}: position {position}, but there are {self.total} questions",
                        code="damaged-journal",
                    )
                model = next(iter(found.values()), entry).row.get("model_id")
                if entry.row.get("model_id") != model:
                    raise AnswersError(
                        f"{where}: the answer to {entry.row['question_id']} is of the model "
                        f"{entry.row.get('model_id')!r}, others are of {model!r}; the files were put "
                        "together by hand. Remove the folder and run again",
                        code="several-models",
                    )
                if found.setdefault(position, entry).row != entry.row:
                    raise AnswersError(
                        f"{where}: a second, different answer to question {position}",
                        code="contradicting-answers",
                    )
        return found

    def rounding(self) -> JsonObject:
        """Return what `describe_rounding` says of the answers so far.

        Of a run with a backend also `left_to_engine`: how many answers are the engine's.
        """
        entries, about = self.read().values(), self.about(self.folder)
        both = [
            (entry.lead, entry.lead_in_batch)
            for entry in entries
            if entry.lead is not None and entry.lead_in_batch is not None
        ]
        found = describe_rounding(both, about["dtype"])
        if "backend" in about:
            found["left_to_engine"] = sum(entry.by is None for entry in entries)
        return found

    def check_order(self, answers: Mapping[int, Entry]) -> None:
        """Check that a complete set of answers is to these questions in this order."""
        keys = [row_key(answers[position].row) for position in range(self.total)]
        if keys_digest(keys) != self.keys_sha256:
            raise AnswersError(
                f"{self.folder}: ids or prompts of the answers are not those of the questions; the files "
                "were changed by hand. Remove the folder and run again",
                code="changed-answers",
            )

    @contextmanager
    def writer(self, name: str) -> Iterator[Writer]:
        """Yield a writer for the shard called `name` ("4_0"), which one process has at a time.

        Raises:
            AnswersError: Another process answers this shard, or the same questions in other shards.
        """
        with ExitStack() as stack:
            with _locked(self.folder / "folder.lock"):
                count = name.split("_")[0]
                for other in sorted(self.folder.glob("*_*.lock")):
                    if other.name.split("_")[0] != count:
                        with _locked(other, f"{self.folder} is in use in {other.name.split('_')[0]} shards"):
                            pass
                busy = f"shard {name} of {self.folder} is being answered"
                stack.enter_context(_locked(self.folder / f"{name}.lock", busy))
            path = self.folder / f"{name}.jsonl"
            _cut_incomplete_line(path)
            # Unbuffered: closing must not retry what a full disk refused.
            stream = stack.enter_context(path.open("ab", buffering=0))
            yield Writer(stream)


@dataclass(frozen=True, slots=True)
class Writer:
    """Appends answers to one shard's file; each is written to the system before the next."""

    stream: FileIO

    def append(self, position: int, entry: Entry) -> None:
        """Record the answer to question `position`.

        Raises:
            AnswersError: The disk is full or broken; the answers before this one are kept.
        """
        rest = (json.dumps({"position": position, **asdict(entry)}) + "\n").encode()
        try:
            while rest:
                rest = rest[self.stream.write(rest) :]
        except OSError as error:
            raise AnswersError(
                f"{self.stream.name}: {error.strerror}; the answers before this one are kept, the same "
                "command asks the rest",
                code="disk-full",
            ) from error


def keys_digest(keys: Sequence[Key]) -> str:
    """Return the SHA-256 of the questions' ids and prompts, in order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(json.dumps(key).encode() + b"\n")
    return digest.hexdigest()


def row_key(row: JsonObject) -> Key:
    """Return the key of a row of an answers file."""
    return row["question_id"], row["prompt"]


def _check_same_run(folder: Path, record: JsonObject) -> None:
    earlier = read_json(folder / "run.json")
    if earlier == record:
        return
    old, new = earlier.get("about", {}), record["about"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
    raise AnswersError(
        f"{folder} holds answers of another run: {changes or 'its questions differ'}. Write to another "
        "folder, or discard them: --overwrite, or OVERWRITE=1 for the scripts",
        code="other-run",
    )


def _read_entries(path: Path) -> Iterator[tuple[str, int, Entry]]:
    """Yield (file:line, position, entry) for each complete line."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                # Of a process that was killed, or that is still writing.
                logger.warning(f"{path}:{number}: the last line is incomplete and is dropped")
                return
            try:
                value = parse_json(line.decode())
                image = value.get("image")
                entry = Entry(
                    value["row"],
                    value["margin"],
                    image and _content(image),
                    # Older journals have none of these.
                    **{name: value.get(name) for name in ("lead", "lead_in_batch", "by")},
                )
                row_key(entry.row)
                yield f"{path}:{number}", int(value["position"]), entry
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AnswersError(
                    f"{path}:{number}: not an answer of a run ({type(error).__name__}: {error}); the file is "
                    "damaged. Remove this line, or the file, and run again: what is missing is asked again",
                    code="damaged-journal",
                ) from error


def _content(image: JsonObject) -> FileContent:
    state = image["state"]
    return FileContent(str(image["sha256"]), None if state is None else tuple(state))


def _cut_incomplete_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


@contextmanager
def _locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`. The lock ends with the process, however it ends.

    If another process holds it, wait; or, given what is `busy`, refuse and say by whom.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout as error:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise AnswersError(
            f"{busy} by {holder}; wait for it to end, or stop it", code="answers-in-use"
        ) from error
    try:
        with name_in_errors(path):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()
