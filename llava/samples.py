"""Convert LLaVA's JSON records to samples and back, and check each one before training.

A record has the keys `id`, `image` (a path under the image folder; text-only records have none) and
`conversations`, a list of `{"from": "human" or "gpt", "value": text}`. The data engine adds `type`, the name
of the question type, for one validation loss per type; the original ignores it.

A record is refused if the original crashes on it or trains on something that was not meant:

* a speaker other than human and gpt, turns that do not alternate, or no turns;
* a text that is not a string, or contains half a surrogate pair;
* an image that is not a path under the image folder;
* `<image>` in two turns of a record with an image;
* in a record without an image, `<image>` as the first or last line of a human turn.

These are accepted, as in the original:

* a first turn from gpt, even the only one; the prompt leaves it out later;
* `<image>` anywhere in its turn, or several times in one turn: it moves to the front, once;
* `<image>` elsewhere in a record without an image: it is plain text, as in the XML of a feed;
* a last turn without an answer, empty texts, and other keys, which are dropped.

A missing id becomes the record's location. A sample in which nothing is supervised, such as one whose image
no text mentions, is accepted here; prompts/labels.py reports it.

Source: LLaVA v1.2.2 train.py, LazySupervisedDataset (fields, lengths).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError, shown
from llava.files import read_jsonl, stream_json_array
from llava.image_reading import find_name_problem
from llava.schema import JsonObject, RecordId, Sample, Turn

# The number of words that an image counts as when samples are grouped by length.
IMAGE_WORDS = 128

NOT_A_RECORD = "not a record"
NO_TURNS = "no turns"
BAD_TURN = "bad turn"
NOT_ALTERNATING = "turns do not alternate"
BAD_ID = "bad id"
BAD_IMAGE_NAME = "bad image name"
TOKEN_WITHOUT_IMAGE = "image token without image"
SEVERAL_TOKENS = "image token in several turns"


class RecordError(DataError):
    """A record cannot be used.

    Attributes:
        kind: What is wrong, one of the constants above; the error's code is the same with hyphens.
        sample: The sample, if only its image tokens are wrong.
    """

    def __init__(self, kind: str, message: str, sample: Sample | None = None) -> None:
        super().__init__(message, code=kind.replace(" ", "-"))
        self.kind = kind
        self.sample = sample

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.kind, str(self), self.sample)


def read_records(path: Path, passed: Callable[[int], object] | None = None) -> Iterator[tuple[int, object]]:
    """Yield (position, record) for each record of a JSON array or a `.jsonl` file, in order.

    A position is the record's number from 0, in a `.jsonl` file its line from 1. `passed` is called with the
    number of bytes read so far.

    Raises:
        DataError: The file is not valid JSON or not a list; the message gives the line.
    """
    return read_jsonl(path, passed) if path.suffix == ".jsonl" else enumerate(stream_json_array(path, passed))


def record_location(path: Path, position: int) -> str:
    """Return how messages name a record: `train.json: record 3`, `train.jsonl:4`."""
    return f"{path}:{position}" if path.suffix == ".jsonl" else f"{path}: record {position}"


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a JSON array or a `.jsonl` file, in order.

    Raises:
        DataError: The file or a record is invalid; the message gives its position in the file.
    """
    for position, row in read_records(path):
        yield parse_sample(row, record_location(path, position))


def parse_sample(row: object, where: str) -> Sample:
    """Return the sample that one record describes.

    Args:
        row: The decoded record.
        where: File and position, for the message.

    Raises:
        RecordError: The record is refused (see above); the message starts with `where` and the id.
    """
    if not isinstance(row, dict):
        found = type(row).__name__
        raise RecordError(
            NOT_A_RECORD, f"{where}: found {found}, wanted an object with id, image and conversations"
        )
    identifier = _identifier(row, where)
    where = f"{where} (id {identifier!r})" if row.get("id") is not None else where
    turns = _turns(row.get("conversations"), where)
    image = _image(row, where)
    sample = Sample(identifier, turns, image, _type(row))
    _check_image_tokens(sample, where)
    return sample


def sample_to_row(sample: Sample) -> JsonObject:
    """Return the record of a sample: id, image, conversations, type, without the fields it lacks."""
    row: JsonObject = {"id": sample.id}
    if sample.image is not None:
        row["image"] = sample.image
    row["conversations"] = [{"from": turn.speaker, "value": turn.text} for turn in sample.turns]
    if sample.type is not None:
        row["type"] = sample.type
    return row


def has_unused_image_token(sample: Sample) -> bool:
    """Return whether a text-only sample contains the image token, which is plain text there."""
    return sample.image is None and any(DEFAULT_IMAGE_TOKEN in turn.text for turn in sample.turns)


def group_lengths(sample: Sample) -> tuple[int, int]:
    """Return the two lengths that samples are grouped by, in words separated by white space.

    The first counts an image as 128 words. The second counts only the text, and is negative without an image:
    the sampler separates the two kinds by sign. It is at least one word; the original counts 0 for an empty
    text and fails later.
    """
    words = sum(len(turn.text.split()) for turn in sample.turns)
    if sample.image is None:
        return words, -max(words, 1)
    return words + IMAGE_WORDS, max(words, 1)


def _identifier(row: JsonObject, where: str) -> RecordId:
    identifier = row.get("id")
    if identifier is None:
        return where
    if isinstance(identifier, str | int) and not isinstance(identifier, bool):
        return identifier
    if isinstance(identifier, float):  # some table programs write integers as floats
        return int(identifier) if identifier.is_integer() else str(identifier)
    raise RecordError(BAD_ID, f"{where}: id is {shown(identifier)}, wanted a string or a number")


def _turns(conversations: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        found = "missing" if conversations is None else shown(conversations)
        raise RecordError(NO_TURNS, f"{where}: conversations is {found}, wanted a list of turns")
    turns = tuple(_turn(entry, where, index) for index, entry in enumerate(conversations))
    opening = 0 if turns[0].speaker == "human" else 1
    for index, turn in enumerate(turns[opening:], start=opening):
        wanted = "human" if (index - opening) % 2 == 0 else "gpt"
        if turn.speaker != wanted:
            raise RecordError(
                NOT_ALTERNATING,
                f"{where}: turn {index} is from {turn.speaker}, wanted {wanted}: they must alternate",
            )
    return turns


def _turn(entry: object, where: str, index: int) -> Turn:
    if not isinstance(entry, dict):
        raise RecordError(
            BAD_TURN, f"{where}: turn {index} is {type(entry).__name__}, wanted an object with from and value"
        )
    speaker, text = entry.get("from"), entry.get("value")
    if speaker != "human" and speaker != "gpt":
        raise RecordError(
            BAD_TURN, f'{where}: turn {index} is from {shown(speaker)}, wanted "human" or "gpt"'
        )
    if not isinstance(text, str):
        raise RecordError(BAD_TURN, f"{where}: turn {index} has the value {shown(text)}, wanted a string")
    if (at := _half_pair(text)) is not None:
        raise RecordError(
            BAD_TURN,
            f"{where}: turn {index} contains half a surrogate pair at character {at} ({text[at]!r}), "
            "which no tokenizer can read: replace it by the whole character",
        )
    return Turn(speaker, text)


def _half_pair(text: str) -> int | None:
    """Return the position where a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _image(row: JsonObject, where: str) -> str | None:
    """Return the record's image path, or None without the key `image`; raise a RecordError for a bad one."""
    if "image" not in row:
        return None
    image = row["image"]
    if problem := find_name_problem(image):
        advice = " (a text-only record has no key image)" if not image else ""
        raise RecordError(BAD_IMAGE_NAME, f"{where}: image is {shown(image)}, {problem}{advice}")
    return str(image)


def _type(row: JsonObject) -> str | None:
    """Return the question type, or None if the record's `type` is not a string."""
    kind = row.get("type")
    if not isinstance(kind, str) or _half_pair(kind) is not None:
        return None
    return kind.strip() or None


def _check_image_tokens(sample: Sample, where: str) -> None:
    indices = [index for index, turn in enumerate(sample.turns) if DEFAULT_IMAGE_TOKEN in turn.text]
    shown = [index for index in indices if _shows_image(sample.turns[index])]
    if shown and sample.image is None:
        raise RecordError(
            TOKEN_WITHOUT_IMAGE,
            f"{where}: turn {shown[0]} contains {DEFAULT_IMAGE_TOKEN}, but the record has no image: "
            "add the key image, or change the token",
            sample,
        )
    if len(indices) > 1 and sample.image is not None:
        raise RecordError(
            SEVERAL_TOKENS,
            f"{where}: {DEFAULT_IMAGE_TOKEN} is in turns {', '.join(map(str, indices))}, "
            "but a record has one image: keep it in one turn",
            sample,
        )


def _shows_image(turn: Turn) -> bool:
    """Return whether the image token is the first or last line of a human turn, as in LLaVA's records."""
    lines = turn.text.strip().split("\n")
    return turn.speaker == "human" and DEFAULT_IMAGE_TOKEN in (lines[0].strip(), lines[-1].strip())
