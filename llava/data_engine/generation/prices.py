"""What a model's tokens cost: a TOML file of the user's, because no table of prices stays right."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from llava.errors import SettingsError, shown
from llava.files import read_text

_PER = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one call. `cached` is the part of `prompt` that the server had read before."""

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one model, in dollars per million tokens.

    Attributes:
        input: Of the prompt.
        cached: Of the part of the prompt that the server takes from its cache.
        output: Of the answer.
        batch: The factor on all prices for a batch file (0.5 for half the price).
        image_tokens: The most tokens that one image counts as.
        date: When the prices were looked up.
        source: Where.
    """

    input: float
    cached: float
    output: float
    batch: float
    image_tokens: float
    date: str
    source: str

    def cost(self, usage: Usage, *, batch: bool = False) -> float:
        """Return the dollars for `usage`."""
        fresh = max(usage.prompt - usage.cached, 0)
        total = fresh * self.input + usage.cached * self.cached + usage.completion * self.output
        return total / _PER * (self.batch if batch else 1.0)


def read_price(path: Path, model: str) -> Price:
    """Return the price of `model` from a price file, whose tables are `[models."NAME"]`.

    Raises:
        SettingsError: The file is not TOML, does not name the model, or a field is missing or wrong.
    """
    try:
        models = tomllib.loads(read_text(path)).get("models", {})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}", code="not-toml") from error
    table = models.get(model) if isinstance(models, dict) else None
    if not isinstance(table, dict):
        raise SettingsError(
            f'{path}: no price for {model!r}; add a table [models."{model}"]', code="unknown-price"
        )
    if unknown := sorted(set(table) - {field.name for field in fields(Price)}):
        raise SettingsError(f"{path}: {model!r} has an unknown field {unknown[0]!r}", code="unknown-setting")

    def number(name: str, usual: float | None = None) -> float:
        return _number(table.get(name, usual), f"{path}: {model!r}: {name}")

    def text(name: str) -> str:
        return _text(table.get(name), f"{path}: {model!r}: {name}")

    return Price(
        input=number("input"),
        cached=number("cached"),
        output=number("output"),
        batch=number("batch", 1.0),
        image_tokens=number("image_tokens"),
        date=text("date"),
        source=text("source"),
    )


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise SettingsError(f"{where} is {shown(value)}; wanted a number from 0 up", code="bad-price")
    return float(value)


def _text(value: object, where: str) -> str:
    if value is None or not str(value).strip():
        raise SettingsError(f"{where} is missing; say when and where the price was read", code="bad-price")
    return str(value)
