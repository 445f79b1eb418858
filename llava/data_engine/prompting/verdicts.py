"""What readers think of questions, a line each as it comes: nothing a person marked is lost by a kill."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from llava.errors import DataError, shown
from llava.files import append_jsonl, read_jsonl

VERDICTS = "verdicts.jsonl"
TAGS = {
    "wrong answer": "the marked option is not right",
    "two right": "another option is right, too",
    "not there": "it asks about something that the image does not show",
    "unclear": "several things could be meant",
    "no image needed": "the text alone gives the answer away",
    "other type": "it asks for another skill",
    "source": "it speaks of descriptions or boxes, not of the image",
    "too easy": "nobody would get it wrong",
    "language": "it is badly written",
}
"""What can be wrong with a question."""
LONGEST_NOTE = 500


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """A verdict on an item. `tag` is one of TAGS, or the rule that rejects it; empty if it passed."""

    item: str
    passed: bool
    tag: str = ""
    note: str = ""
    by: str = "rule"


def make_verdict(row: object, by: str) -> JudgedItem:
    """Return the verdict in what a page sent or a judge wrote.

    Raises:
        DataError: A field is missing or of another form.
    """
    if isinstance(row, dict):
        item, passed, tag, note = (row.get(key) for key in ("item", "passed", "tag", "note"))
        has_tag = tag in TAGS or (passed is True and tag in (None, ""))
        if isinstance(item, str) and isinstance(passed, bool) and has_tag and isinstance(note, str | None):
            return JudgedItem(item, passed, "" if passed else str(tag), (note or "")[:LONGEST_NOTE], by)
    raise DataError(
        f"found {shown(row)}; wanted item, passed, tag (one of {', '.join(TAGS)}) and note",
        code="bad-verdict",
    )


def append_verdict(folder: Path, verdict: JudgedItem) -> None:
    """Add a line to a trial's verdicts.jsonl, on disk when this returns."""
    append_jsonl(folder / VERDICTS, asdict(verdict))


def read_verdicts(folder: Path) -> dict[str, JudgedItem]:
    """Return the verdicts of a trial by item; the last one on an item counts.

    Raises:
        DataError: A line is damaged; one that was cut short at the end is left out.
    """
    path = folder / VERDICTS
    found = {}
    for number, row in read_jsonl(path, growing=True) if path.is_file() else ():
        try:
            verdict = make_verdict(row, str(row.get("by")))
        except DataError as error:
            raise DataError(
                f"{path}:{number}: {error}; mend or remove the line", code="bad-verdict"
            ) from error
        found[verdict.item] = verdict
    return found
