"""Read engine JSON, in both published formats, as validated EngineRecords.

The published format (2024) has instruction, answer, short_answer, options, choice_answer, image and qtype;
its README spells `choide_answer` once, so both spellings count. Other keys are ignored. The first engine
(2023) wrote question, choices, correct_choice_idx, question_type and a COCO image_id, and no direct answer.

Nothing is guessed: the given letter names the correct option, short_answer is never compared with the
options, and a field that cannot be used is refused with one of the reasons below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import ascii_uppercase

from llava.data_engine.question_types import find_skill
from llava.data_engine.text import Unusable, clean, digest, without_outer_image_tokens
from llava.errors import DataError, shown
from llava.files import read_jsonl, stream_json_array
from llava.image_reading import find_name_problem
from llava.schema import JsonObject

ENGINE_SOURCE = "https://huggingface.co/datasets/juliozhao/dataengine_llava (dataengine_llava.json)"
UNLABELLED = "unlabelled"
_LETTER_KEYS = ("choice_answer", "choide_answer")
_LETTER = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.):]?")
_OPTION_LABEL = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[.):](?=\s))\s*(?=\S)")
_VG_FOLDERS = ("VG_100K", "VG_100K_2")
_COCO_ID = re.compile(r"\d{1,12}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Two to 26 options without labels, and the index of the correct one, whose text is unique."""

    options: tuple[str, ...]
    correct: int


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """One question about one image.

    `request` is the id of the request that a round got it by, None for other records. `faults` says why a
    field that was given is None here.
    """

    position: int
    image: str
    instruction: str
    skill: str = UNLABELLED
    answer: str | None = None
    short_answer: str | None = None
    choice: Choice | None = None
    faults: Mapping[str, Unusable] = field(default_factory=dict)
    request: str | None = None

    @property
    def name(self) -> str:
        """Return what tells the record from others in ids: its number in the source.

        That of a round's record is a digest, which it keeps among other records: see `lineage.trace`.
        """
        if self.request is None:
            return str(self.position)
        return f"{digest(chr(10).join((self.request, self.image, self.instruction))):016x}"


def require_records(path: Path) -> None:
    """Raise an error that says where the published records are, unless `path` is there."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the published engine records are at {ENGINE_SOURCE}", code="missing-file"
        )


def read_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (index from 0, row) of a JSON array or (line from 1, row) of a `.jsonl` file, without validation.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    require_records(path)
    return read_jsonl(path) if path.suffix == ".jsonl" else enumerate(stream_json_array(path))


def parse_record(row: object, position: int) -> EngineRecord:
    """Return the record in `row`; `position` is its number in the source.

    Raises:
        Unusable: There is no image or no instruction to use, or the skill does not exist.
    """
    if not isinstance(row, dict):
        raise Unusable("not_an_object", f"found {type(row).__name__}")
    if "conversations" in row:
        raise Unusable("already_a_sample", "has conversations: put it behind the base with `mix --samples`")
    if "instruction" not in row and ("question" in row or "raw_instructions" in row):
        row = _from_first_engine(row)
    faults: dict[str, Unusable] = {}

    def usable(name: str) -> str | None:
        try:
            return None if row.get(name) is None else clean(row[name], name, one_line=False)
        except Unusable as fault:
            faults[name] = fault
            return None

    if row.get("instruction") is None:
        raise Unusable("instruction_missing")
    instruction = clean(without_outer_image_tokens(row["instruction"]), "instruction", one_line=True)
    image, skill = _image_path(row.get("image")), _skill_name(row)
    answer, short_answer = usable("answer"), usable("short_answer")
    try:
        choice = _choice(row)
    except Unusable as fault:
        choice, faults["choice"] = None, fault
    request = row.get("request") if isinstance(row.get("request"), str) else None
    return EngineRecord(position, image, instruction, skill, answer, short_answer, choice, faults, request)


def _from_first_engine(row: JsonObject) -> JsonObject:
    """Return a row of the first engine with the published format's keys. Its images are COCO train2017."""
    if "question" not in row:
        raise Unusable("first_engine_not_parsed", "raw_instructions without question and choices")
    new = {"instruction": row["question"], "options": row.get("choices"), "image": row.get("image")}
    image_id = row.get("image_id")
    if new["image"] is None and isinstance(image_id, int | str) and _COCO_ID.fullmatch(str(image_id)):
        new["image"] = f"coco/train2017/{int(image_id):012}.jpg"
    correct = row.get("correct_choice_idx")
    if correct is not None:
        if isinstance(correct, bool) or not isinstance(correct, int):
            new["choice_answer"] = correct
        else:
            in_alphabet = 0 <= correct < len(ascii_uppercase)
            new["choice_answer"] = ascii_uppercase[correct] if in_alphabet else f"choice {correct}"
    return new | {"question_type": row.get("question_type")}


def _image_path(value: object) -> str:
    """Return the path under the image folder, with forward slashes and, for `VG_100K/...`, `vg/` in front."""
    if value is None:
        raise Unusable("image_missing")
    given = clean(value, "image", one_line=True)
    if problem := find_name_problem(given):
        raise Unusable("image_unsafe_path", f"found {shown(given)}, {problem}")
    path = PurePosixPath(given.replace("\\", "/"))
    return f"vg/{path}" if path.parts[0] in _VG_FOLDERS else str(path)


def _skill_name(row: JsonObject) -> str:
    label = row.get("qtype")
    if label is None:
        own = row.get("question_type")
        return own if isinstance(own, str) and own else UNLABELLED
    skill = find_skill(label)
    if skill is None:
        raise Unusable("qtype_unknown", f"found {shown(label)}, wanted 1 to 9")
    return skill.name


def _choice(row: JsonObject) -> Choice | None:
    """Return the options and the correct one of a record, or None if it has neither options nor a letter."""
    given = [row[key] for key in _LETTER_KEYS if row.get(key) not in (None, "")]
    raw_options = row.get("options")
    if not raw_options and not given:
        return None
    if not given:
        raise Unusable("letter_missing")
    letters = {_letter(value) for value in given}
    if len(letters) > 1:
        raise Unusable("letters_disagree", f"found {' and '.join(sorted(letters))}")
    options = _options(raw_options)
    letter = letters.pop()
    correct = ascii_uppercase.index(letter)
    if correct >= len(options):
        raise Unusable("letter_out_of_range", f"found {letter}, but there are {len(options)} options")
    if options.count(options[correct]) > 1:
        raise Unusable("correct_option_repeated", f"found {options[correct]!r} more than once")
    return Choice(options, correct)


def _letter(value: object) -> str:
    match = _LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise Unusable("letter_not_a_letter", f"found {shown(value)}")
    return (match[1] or match[2]).upper()


def _options(value: object) -> tuple[str, ...]:
    if not value:
        raise Unusable("options_missing")
    if not isinstance(value, list):
        raise Unusable("options_not_a_list", f"found {type(value).__name__}")
    if not 2 <= len(value) <= len(ascii_uppercase):
        raise Unusable("options_wrong_number", f"found {len(value)}, wanted 2 to {len(ascii_uppercase)}")
    return _without_labels([clean(option, "option", one_line=True) for option in value])


def _without_labels(options: list[str]) -> tuple[str, ...]:
    """Return the options without the "A. " or "(A) " that all have; a single "A. Lincoln" is a name.

    Raises:
        Unusable: All have a label of these options, but not each its own.
    """
    labels = [_OPTION_LABEL.match(option) for option in options]
    letters = [(label[1] or label[2]).upper() for label in labels if label]
    wanted = list(ascii_uppercase[: len(options)])
    if letters == wanted:
        return tuple(option[label.end() :] for option, label in zip(options, labels, strict=True) if label)
    if len(letters) == len(options) and set(letters) <= set(wanted):
        raise Unusable("option_labels_out_of_order", f"found {', '.join(letters)}")
    return tuple(options)
