"""The answers given so far, kept so that no crash loses one and no two runs mix. Needs no torch.

A journal is a folder: `run.json` says which model, questions and settings the answers belong to, and one
append-only `N_I.jsonl` per chunk holds a line `{"position", "margin", "row"}` for each answer as it came.
`position` counts questions from 0 through the whole file, so a later run may use any number of chunks.
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
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llava.errors import AnswersError
from llava.files import read_json, write_json

logger = logging.getLogger(__name__)

Key = tuple[Any, str]
"""What tells questions apart in an answers file: its id and the prompt as logged. Ids alone repeat."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer: its row of the answers file, and by how many logits its closest token won, if known."""

    row: dict[str, Any]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal of `total` questions whose keys, in order, have the digest `keys_sha256`."""

    folder: Path
    total: int
    keys_sha256: str

    @classmethod
    def open(
        cls, folder: Path, about: Mapping[str, Any], keys: Sequence[Key], *, overwrite: bool = False
    ) -> Journal:
        """The journal in `folder`, made if it is not there.

        Args:
            folder: The journal's own folder.
            about: What the answers depend on: model, questions, settings. JSON values only.
            keys: The key of every question, in order.
            overwrite: Forget earlier answers first.

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
                    f"{folder}: answers without their run.json, so nobody can tell which model gave them; "
                    "remove the folder"
                )
            else:
                write_json(folder / "run.json", record)
        return cls(folder, len(keys), digest)

    @classmethod
    def existing(cls, folder: Path) -> Journal:
        """The journal that is in `folder` already.

        Raises:
            AnswersError: There is none.
        """
        path = folder / "run.json"
        if not path.is_file():
            raise AnswersError(f"{folder}: no run.json, so no run has begun to answer here")
        record = read_json(path)
        return cls(folder, record["questions"], record["keys_sha256"])

    @staticmethod
    def discard(folder: Path) -> None:
        """Forget the journal in `folder`, unless a process is answering into it."""
        with ExitStack() as locks:
            for lock in sorted(folder.glob("*.lock")):
                locks.enter_context(_locked(lock, f"{folder} is in use"))
            if folder.is_dir():
                shutil.rmtree(folder)
                logger.info(f"{folder}: earlier answers discarded")

    def read(self) -> dict[int, Entry]:
        """Every answer so far, by position, whichever chunk gave it.

        A last line that a killed process left torn is dropped with a message; it will be asked again.

        Raises:
            AnswersError: A line is damaged, or one question has two different answers.
        """
        found: dict[int, Entry] = {}
        for path in sorted(self.folder.glob("*_*.jsonl")):
            for place, position, entry in _read_entries(path):
                if not 0 <= position < self.total:
                    raise AnswersError(f"{place}: position {position}, but there are {self.total} questions")
                if found.setdefault(position, entry).row != entry.row:
                    raise AnswersError(f"{place}: a second, different answer to question {position}")
        return found

    def check_order(self, answers: Mapping[int, Entry]) -> None:
        """Refuse a complete set of answers that are not to exactly these questions in this order."""
        keys = [row_key(answers[position].row) for position in range(self.total)]
        if keys_digest(keys) != self.keys_sha256:
            raise AnswersError(
                f"{self.folder}: ids or prompts of the answers are not those of the questions; the files "
                "were changed by hand. Remove the folder and run again"
            )

    @contextmanager
    def writer(self, name: str) -> Iterator[Writer]:
        """A writer for the chunk called `name` ("4_0"), which no other process can have at the same time.

        Raises:
            AnswersError: Another process answers this chunk, or the same questions in other chunks.
        """
        with ExitStack() as stack:
            with _locked(self.folder / "folder.lock"):
                count = name.split("_")[0]
                for other in sorted(self.folder.glob("*_*.lock")):
                    if other.name.split("_")[0] != count:
                        with _locked(other, f"{self.folder} is in use in {other.name.split('_')[0]} chunks"):
                            pass
                busy = f"chunk {name} of {self.folder} is being answered"
                stack.enter_context(_locked(self.folder / f"{name}.lock", busy))
            path = self.folder / f"{name}.jsonl"
            _cut_torn_end(path)
            # Unbuffered: what a full disk refused must not be tried again on closing.
            stream = stack.enter_context(path.open("ab", buffering=0))
            yield Writer(stream)


@dataclass(frozen=True, slots=True)
class Writer:
    """Appends answers to one chunk's file; each is with the operating system before the next is given."""

    stream: FileIO

    def append(self, position: int, entry: Entry) -> None:
        """Record the answer to question `position`.

        Raises:
            AnswersError: The disk is full or broken; the answers before this one are kept.
        """
        line = {"position": position, "margin": entry.margin, "row": entry.row}
        rest = (json.dumps(line) + "\n").encode()
        try:
            while rest:
                rest = rest[self.stream.write(rest) :]
        except OSError as error:
            raise AnswersError(
                f"{self.stream.name}: {error.strerror}; the answers before this one are kept, the same "
                "command asks the rest"
            ) from error


def keys_digest(keys: Sequence[Key]) -> str:
    """SHA-256 of the questions' ids and prompts, in order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(json.dumps(key).encode() + b"\n")
    return digest.hexdigest()


def row_key(row: Mapping[str, Any]) -> Key:
    """The key of an answers row."""
    return row["question_id"], row["prompt"]


def _check_same_run(folder: Path, record: Mapping[str, Any]) -> None:
    earlier = read_json(folder / "run.json")
    if earlier == record:
        return
    old, new = earlier.get("about", {}), record["about"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
    raise AnswersError(
        f"{folder} holds answers of another run: {changes or 'its questions differ'}. Write to another "
        "place, or discard them: --overwrite, or OVERWRITE=1 for the scripts"
    )


def _read_entries(path: Path) -> Iterator[tuple[str, int, Entry]]:
    """(file:line, position, entry) of each whole line."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                # By a process that was killed, or that is writing it at this moment.
                logger.warning(f"{path}:{number}: the last line is torn and dropped: it is no answer")
                return
            try:
                value = json.loads(line)
                entry = Entry(value["row"], value["margin"])
                row_key(entry.row)
                yield f"{path}:{number}", int(value["position"]), entry
            except (ValueError, KeyError, TypeError) as error:
                raise AnswersError(
                    f"{path}:{number}: not an answer of a run ({type(error).__name__}: {error}); the file is "
                    "damaged. Remove this line, or the file, and run again: what is missing is asked again"
                ) from error


def _cut_torn_end(path: Path) -> None:
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
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()
