"""Votes on two answers, a line each, with the conversation and its images: nothing that was cast is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from llava.files import append_jsonl
from llava.schema import JsonObject

VOTES = {"left": "The left one is better", "right": "The right one is better"}
VOTES |= {"tie": "Both are good", "bad": "Both are bad"}
"""What can be voted, and how a page puts it."""


class VoteLog:
    """The folder of votes: `votes.jsonl`, and `images/` under names that are their content's SHA-256.

    Several processes may use one folder.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder, so that one that cannot be written is known before the first vote."""
        self._folder = folder
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def add(self, vote: str, conversation: JsonObject, images: Iterable[Path]) -> None:
        """Keep a vote; it is on disk when this returns.

        Args:
            vote: One of VOTES.
            conversation: What was voted on.
            images: The image files in it, in order.
        """
        names = []
        for path in images:
            name = f"images/{sha256(path.read_bytes()).hexdigest()}{path.suffix.lower()}"
            shutil.copyfile(path, self._folder / name)
            names.append(name)
        row = {"time": datetime.now(UTC).isoformat(), "vote": vote, "images": names, **conversation}
        with FileLock(self._folder / "votes.lock"):
            append_jsonl(self._folder / "votes.jsonl", row)
