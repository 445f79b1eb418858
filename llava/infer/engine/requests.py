"""What the engine is asked and what it replies. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cuda", "cpu", "mps"]
DType = Literal["auto", "float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that lies in a file. Equal paths are one image: it is read and encoded once."""

    path: Path


@dataclass(frozen=True, slots=True)
class ImageText:
    """An image whose file content is given in base64."""

    base64: str


ImageSource = ImageFile | ImageText


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, complete with template, holding `<image>` once for each of `images`.

    `name` is how errors speak of it, e.g. "questions.jsonl: question 17 (id 42)".
    """

    prompt: str
    images: tuple[ImageSource, ...] = ()
    name: str = "the request"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, without special tokens and outer spaces.

    `margin` is by how many logits the closest choice between two tokens was decided; None when sampled or
    searched. A small one, measured by `scale`, the largest logit met, means that another batch could have
    tipped it.
    """

    text: str
    margin: float | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are generated: greedily unless `temperature` is above 0 or there are several beams.

    Every field a checkpoint's generation_config could fill in behind the caller's back is stated: Vicuna's
    says temperature 0.9 and top_p 0.6. `top_k` is transformers 4's default, which the original sampled with.
    Each request is sampled from `seed` afresh, so neither order nor chunks change what is drawn.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    top_k: int = 50
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether every token is simply the likeliest."""
        return self.temperature <= 0 and self.num_beams == 1


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which weights to load, and how. `auto` leaves device and precision to what the machine has."""

    path: str
    base: str | None = None
    name: str = ""
    device: str = "auto"
    dtype: str = "auto"
    load_8bit: bool = False
    load_4bit: bool = False
