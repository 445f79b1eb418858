"""A round's folder: its settings in `round.toml`, written once, and the checks between its steps.

The folder's name starts with the round's number (`rounds/2`, `rounds/2-uniform`). Each step records the
sha256 of the files it read. The next step refuses a file that has changed since.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from llava.errors import DataError, SettingsError, shown
from llava.files import atomic_write, read_json, read_text
from llava.schema import JsonObject

SCHEMA = 1
ROUND_FILE = "round.toml"
# What the later steps hand on to one another, in their order.
REQUESTS, RESPONSES = "requests.jsonl", "responses.jsonl"
ACCEPTED, REJECTED = "accepted.jsonl", "rejected.jsonl"
# Of all rounds: every call to a server, with its money.
LEDGER = "ledger.sqlite"
Arm = Literal["guided", "uniform", "retrieved"]
# The arm that takes existing records and asks no model.
RETRIEVED: Arm = "retrieved"


# What each setting means, and the smallest and largest number it takes.
_ABOUT: dict[str, tuple[str, float, float]] = {
    "round": ("number of the round", 1, 1e6),
    "model_id": ("the model whose bad cases guide the round; empty: any", 0, 0),
    "arm": ("guided: by accuracy; uniform: all types evenly; retrieved: data that is there already", 0, 0),
    "seed": ("of every random choice", 0, 2**32),
    "alpha": ("weight of a type = (1 - accuracy)^alpha; paper v2 0.5, v1 1, uniform 0", 0, 10),
    "shrinkage": ('accuracies towards their mean: "none", "moments", or a number of questions', 0, 1e9),
    "guess": ("count an accuracy from the level of guessing on", 0, 1),
    "min_share": ("smallest share of the requests that a type gets", 0, 1),
    "give_up": ("no more requests for types that surely gain less than the others", 0, 1),
    "requests": ("requests of this round", 1, 1e9),
    "cases_per_request": ("bad cases shown in a request", 0, 1000),
    "rounds": ("planned rounds, which share the 5 % chance of a false gain", 1, 1000),
    "flip_rate": ("share of questions that change, where no two runs tell", 1e-6, 1),
    "expected_gain": ("points that would be worth the round; the paper's gained 1.68, 0.58, 0.27", 0, 100),
    "price": ("dollars a request; 0: not known", 0, 1e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """What a person sets for a round; `_ABOUT` says what each setting means.

    Raises:
        SettingsError: A value is of another type or out of range.
    """

    round: int
    model_id: str = ""
    arm: Arm = "guided"
    seed: int = 42
    alpha: float = 0.5
    shrinkage: str | float = "moments"
    guess: bool = False
    min_share: float = 0.0
    give_up: bool = True
    requests: int = 1000
    cases_per_request: int = 10
    rounds: int = 3
    flip_rate: float = 0.2
    expected_gain: float = 1.0
    price: float = 0.0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(RoundSettings).items():
            value = getattr(self, name)
            kinds = str if get_origin(hint) is Literal else hint
            kinds = kinds | int if hint in (float, str | float) else kinds
            if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
                wanted = getattr(hint, "__name__", str(hint))
                raise SettingsError(f"{name} is {shown(value)}; wanted {wanted}", code="wrong-type")
            _, low, high = _ABOUT[name]
            if not isinstance(value, str) and not low <= value <= high:
                raise SettingsError(f"{name} is {value}; wanted {low:g} to {high:g}", code="out-of-range")
        choices = {"arm": get_args(Arm), "shrinkage": ("none", "moments")}
        for name, words in choices.items():
            if isinstance(value := getattr(self, name), str) and value not in words:
                raise SettingsError(
                    f"{name} is {shown(value)}; wanted one of {', '.join(words)}", code="unknown-choice"
                )


def start_round(
    folder: Path, *, model_id: str, paper: bool = False, changes: Sequence[str] = ()
) -> RoundSettings:
    """Write the round's settings if it has none, and return them.

    Args:
        folder: The round's folder; it is made if it is missing.
        model_id: The model whose bad cases will guide the round.
        paper: Take the paper's rule as the default: no shrinkage, and no type is given up.
        changes: Settings other than the defaults, each as `NAME=VALUE`.

    Raises:
        SettingsError: A setting is wrong, or the round has other settings already.
        DataError: The round was started for another model.
    """
    wanted = _parse_changes(changes)
    path = folder / ROUND_FILE
    if path.is_file():
        settings = read_settings(folder)
        for name, value in wanted.items():
            if getattr(settings, name) != value:
                raise SettingsError(
                    f"{path}: {name} is {getattr(settings, name)!r}, not {value!r}; edit it there",
                    code="round-has-settings",
                )
        if settings.model_id not in ("", model_id):
            raise DataError(
                f"{path}: the round is about {settings.model_id}, the scores are of {model_id or 'no model'};"
                " start another round",
                code="other-model",
            )
        return settings
    published: JsonObject = {"shrinkage": "none", "give_up": False} if paper else {}
    settings = _settings({"model_id": model_id, **published, **wanted}, folder)
    lines = [f"{_toml(getattr(settings, name), name)}  # {text}" for name, (text, _, _) in _ABOUT.items()]
    with atomic_write(path) as stream:
        stream.write("# Settings of this round. Edit them between steps; no step overwrites this file.\n")
        stream.write("\n".join(lines) + "\n")
    return settings


def read_settings(folder: Path) -> RoundSettings:
    """Return the settings of a round. What its file leaves out has the default.

    Raises:
        DataError: There is no such round, or its file is no TOML.
        SettingsError: A setting is unknown or wrong.
    """
    path = folder / ROUND_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; `llava engine pool` starts a round", code="missing-file")
    try:
        values = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: no valid TOML ({error})", code="not-toml") from error
    return _settings(values, folder)


def round_number(folder: Path) -> int | None:
    """Return the number that a round's folder is named after, None if it is no round's folder."""
    number = re.match(r"[1-9]\d{0,5}(?!\d)", folder.resolve().name)
    return int(number[0]) if number else None


def find_rounds(rounds: Path) -> list[Path]:
    """Return the folders of all rounds and arms, by number and then by name."""
    folders = [rounds / path.parent.name for path in rounds.resolve().glob(f"*/{ROUND_FILE}")]
    return sorted(folders, key=lambda folder: (round_number(folder) or 0, folder.name))


def read_each(folders: Iterable[Path]) -> dict[Path, RoundSettings]:
    """Return the settings of rounds' folders.

    Raises:
        DataError: Two folders are of the same round and arm.
    """
    found: dict[Path, RoundSettings] = {}
    known: dict[tuple[int, str], Path] = {}
    for folder in folders:
        own = found[folder] = read_settings(folder)
        if other := known.get((own.round, own.arm)):
            raise DataError(
                f"{folder}: round {own.round} of arm {own.arm} is also in {other}; move one of them"
                " elsewhere",
                code="two-folders",
            )
        known[own.round, own.arm] = folder
    return found


def _settings(values: JsonObject, folder: Path) -> RoundSettings:
    number = round_number(folder)
    if number is None:
        raise SettingsError(
            f"{folder}: a round's folder is named after its number, as in rounds/1", code="round-name"
        )
    _require_known(values, folder / ROUND_FILE)
    try:
        settings = RoundSettings(**({"round": number} | dict(values)))
    except SettingsError as error:
        raise SettingsError(f"{folder / ROUND_FILE}: {error}", code=error.code) from error
    if settings.round != number:
        raise SettingsError(
            f"{folder / ROUND_FILE}: round is {settings.round}, the folder's name says {number}",
            code="round-name",
        )
    return settings


def _require_known(values: JsonObject, where: object) -> None:
    if unknown := [name for name in values if name not in _ABOUT]:
        raise SettingsError(
            f"{where}: no setting {shown(unknown[0])}; there are: {', '.join(_ABOUT)}", code="unknown-setting"
        )


def _parse_changes(changes: Sequence[str]) -> JsonObject:
    """Return the settings in texts such as `requests=500`; a text that is no TOML value is a string."""
    found: JsonObject = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"found {shown(change)}; wanted NAME=VALUE", code="not-a-setting")
        try:
            found[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text
    _require_known(found, "--set")
    return found


def _toml(value: object, name: str) -> str:
    # A JSON string is a TOML string, but for DEL.
    return f"{name} = " + json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, as 64 hex digits."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", code="missing-file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_unchanged(path: Path, sha256: str, *, step: str) -> None:
    """Check that a file is still the one that a step read.

    Args:
        path: The file.
        sha256: What the step recorded.
        step: The command to run again, such as "llava engine plan".

    Raises:
        DataError: The file has changed or is gone.
    """
    if file_sha256(path) != sha256:
        raise DataError(f"{path}: changed since `{step}` read it; run `{step}` again", code="changed-input")


def read_step(path: Path, *, step: str, keys: Mapping[str, type]) -> JsonObject:
    """Return the JSON object that a step wrote.

    Args:
        path: The step's file.
        step: The command that writes it.
        keys: The keys it must have, and their types.

    Raises:
        DataError: The file is missing, has another schema, or lacks a key.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; `{step}` writes it", code="missing-file")
    value = read_json(path, strict=True)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(f"{path}: wanted an object of schema {SCHEMA}; run `{step}`", code="wrong-schema")
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            raise DataError(
                f"{path}: {key} is {shown(value.get(key))}, wanted {kind.__name__}; run `{step}`",
                code="wrong-schema",
            )
    return value


def require_types(
    path: Path, types: JsonObject, fits: Callable[[object], bool], *, wanted: str, step: str
) -> None:
    """Check the rows of a step's question types.

    Args:
        path: The step's file.
        types: Its rows, by type.
        fits: Whether a row is as the step writes it.
        wanted: What a row must have, for the message.
        step: The command that writes the file.

    Raises:
        DataError: A row does not fit.
    """
    for name, row in types.items():
        if not fits(row):
            raise DataError(
                f"{path}: type {name!r} is {shown(row)}; wanted {wanted}; run `{step}` again",
                code="wrong-schema",
            )
