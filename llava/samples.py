"""LLaVA's JSON records to samples and back, each checked: what cannot be trained on is said before training.

Knows nothing of prompts and ids. A record has the keys `id`, `image` (a path under the image folder; left out
for text alone) and `conversations`, a list of `{"from": "human" or "gpt", "value": text}`. The data engine
adds `type`, the question type's name, by which validation losses are told apart; the original ignores it.

Refused, because the original crashes on it or trains on something else than was meant: another speaker than
human and gpt; turns that do not alternate; no turn at all; texts that are no strings or hold half a surrogate
pair; an image that is no path; `<image>` in two turns of a record with an image, or, without one, where an
image is shown (a line of its own that opens or ends what the human says).

Taken as the original takes it: a first turn from gpt (kept here, left out of the prompt later), even the only
one; `<image>` anywhere in its turn or several times in one (it moves to the front, once); `<image>` elsewhere
in a record without image (a feed's XML, say: plain text); a last turn without answer; empty texts; other keys
(dropped). A missing id becomes the record's place. What teaches nothing, such as an image that no text
mentions, passes here, and prompts/labels.py counts it.

Source: LLaVA v1.2.2 train.py, LazySupervisedDataset (fields, lengths).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.files import read_jsonl, stream_json_array
from llava.schema import RecordId, Sample, Turn

# Words an image counts for when samples are grouped by length.
IMAGE_WORDS = 128


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a JSON array, or of a `.jsonl` file, one at a time and in order.

    Raises:
        DataError: The file or a record is not as it must be; the message gives its place in the file.
    """
    if path.suffix == ".jsonl":
        for line, row in read_jsonl(path):
            yield parse_sample(row, f"{path}:{line}")
    else:
        for index, row in enumerate(stream_json_array(path)):
            yield parse_sample(row, f"{path}: record {index}")


def parse_sample(row: object, where: str) -> Sample:
    """The sample that one record describes.

    Args:
        row: The record as JSON gives it.
        where: File and place, for the message.

    Raises:
        DataError: The record is not as it must be (see above); the message opens with `where` and the id.
    """
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: found {type(row).__name__}, wanted an object with id, image and conversations"
        )
    identifier = _identifier(row, where)
    where = f"{where} (id {identifier!r})" if row.get("id") is not None else where
    turns = _turns(row.get("conversations"), where)
    image = _image(row, where)
    _check_image_tokens(turns, where, has_image=image is not None)
    return Sample(identifier, turns, image, _type(row))


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """The record of a sample: keys in the order id, image, conversations, type; none for what it has not."""
    row: dict[str, Any] = {"id": sample.id}
    if sample.image is not None:
        row["image"] = sample.image
    row["conversations"] = [{"from": turn.speaker, "value": turn.text} for turn in sample.turns]
    if sample.type is not None:
        row["type"] = sample.type
    return row


def names_image_in_vain(sample: Sample) -> bool:
    """Whether a sample of text alone holds the image token, which is plain text there."""
    return sample.image is None and any(DEFAULT_IMAGE_TOKEN in turn.text for turn in sample.turns)


def word_length(sample: Sample) -> int:
    """Words between white space, and 128 for an image: the length samples are grouped by."""
    return _words(sample) + (IMAGE_WORDS if sample.image is not None else 0)


def modality_length(sample: Sample) -> int:
    """Words between white space, negative for text alone: the sampler keeps the two kinds apart by sign.

    At least one word, where the original counts none and later stops on it.
    """
    words = max(_words(sample), 1)
    return words if sample.image is not None else -words


def _words(sample: Sample) -> int:
    return sum(len(turn.text.split()) for turn in sample.turns)


def _identifier(row: dict[str, Any], where: str) -> RecordId:
    identifier = row.get("id")
    if identifier is None:
        return where
    if isinstance(identifier, str | int) and not isinstance(identifier, bool):
        return identifier
    if isinstance(identifier, float):  # a table program's idea of an integer
        return int(identifier) if identifier.is_integer() else str(identifier)
    raise DataError(f"{where}: id is {json.dumps(identifier)[:60]}, wanted a string or a number")


def _turns(conversations: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        found = "missing" if conversations is None else f"{json.dumps(conversations)[:60]}"
        raise DataError(f"{where}: conversations is {found}, wanted a list of turns")
    turns = tuple(_turn(entry, where, place) for place, entry in enumerate(conversations))
    opening = 0 if turns[0].speaker == "human" else 1
    for place, turn in enumerate(turns[opening:], start=opening):
        wanted = "human" if (place - opening) % 2 == 0 else "gpt"
        if turn.speaker != wanted:
            raise DataError(
                f"{where}: turn {place} is from {turn.speaker}, wanted {wanted}: they must alternate"
            )
    return turns


def _turn(entry: object, where: str, place: int) -> Turn:
    if not isinstance(entry, dict):
        raise DataError(
            f"{where}: turn {place} is {type(entry).__name__}, wanted an object with from and value"
        )
    speaker, text = entry.get("from"), entry.get("value")
    if speaker != "human" and speaker != "gpt":
        raise DataError(f'{where}: turn {place} is from {speaker!r}, wanted "human" or "gpt"')
    if not isinstance(text, str):
        raise DataError(f"{where}: turn {place} has the value {text!r}, wanted a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: turn {place} holds half a surrogate pair at character {error.start} "
            f"({text[error.start]!r}), which no tokenizer reads: replace it by the character it was cut from"
        ) from error
    return Turn(speaker, text)


def _image(row: dict[str, Any], where: str) -> str | None:
    if "image" not in row:
        return None
    image = row["image"]
    if isinstance(image, str) and image.strip():
        return image
    raise DataError(
        f"{where}: image is {json.dumps(image)[:60]}, wanted one path under the image folder "
        "(a record of text alone has no key image)"
    )


def _type(row: dict[str, Any]) -> str | None:
    """The question type. A key of that name that holds no name is someone else's, and dropped like others."""
    kind = row.get("type")
    return kind.strip() if isinstance(kind, str) and kind.strip() else None


def _check_image_tokens(turns: tuple[Turn, ...], where: str, *, has_image: bool) -> None:
    places = [place for place, turn in enumerate(turns) if DEFAULT_IMAGE_TOKEN in turn.text]
    shown = [place for place in places if _shows_image(turns[place])]
    if shown and not has_image:
        raise DataError(
            f"{where}: turn {shown[0]} holds {DEFAULT_IMAGE_TOKEN}, but the record has no image: "
            "add the key image, or write the token otherwise"
        )
    if len(places) > 1 and has_image:
        raise DataError(
            f"{where}: {DEFAULT_IMAGE_TOKEN} stands in turns {', '.join(map(str, places))}, "
            "but a record has one image: keep it in one turn"
        )


def _shows_image(turn: Turn) -> bool:
    """Whether the image token stands where LLaVA's own records have it: a first or last line of its own."""
    lines = turn.text.strip().split("\n")
    return turn.speaker == "human" and DEFAULT_IMAGE_TOKEN in (lines[0].strip(), lines[-1].strip())
