"""The engine's inputs and outputs: requests and replies, generation parameters, the choice of a model.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.infer.digests import FileContent

Device = Literal["auto", "cuda", "cpu", "mps"]
DType = Literal["auto", "float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file. Equal paths are one image, which is read and encoded once."""

    path: Path


@dataclass(frozen=True, slots=True)
class ImageText:
    """An image file's content in base64."""

    base64: str


ImageSource = ImageFile | ImageText


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for the engine.

    Attributes:
        prompt: The full text, template included, with one `<image>` for each of `images`.
        images: The images, in order.
        name: What error messages call it, e.g. "questions.jsonl: question 17 (id 42)".
    """

    prompt: str
    images: tuple[ImageSource, ...] = ()
    name: str = "the request"


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's answer to one request.

    Attributes:
        text: The answer without special tokens and surrounding white space.
        margin: The smallest difference between the logits of the best and second-best token over all steps;
            None if the answer was sampled or beam-searched.
        lead: The smallest such difference relative to the largest absolute logit of its step. If it is a few
            rounding steps, another batch could have changed the answer.
        images: What the request's image files held.
        lead_in_batch: The lead that this answer had in a batch before it was computed again on its own:
            negative if another was ahead, None if it was computed once.
    """

    text: str
    margin: float | None = None
    lead: float | None = None
    images: tuple[FileContent, ...] = ()
    lead_in_batch: float | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are generated: greedily unless `temperature` is above 0 or there are several beams.

    All fields are explicit, so that a checkpoint's generation_config cannot change them (Vicuna's sets
    temperature 0.9 and top_p 0.6). `top_k` is the default of transformers 4, with which the original samples.
    The random generator is seeded anew for each request, so that neither order nor sharding changes answers.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    top_k: int = 50
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return self.temperature <= 0 and self.num_beams == 1


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which weights to load, and how. `auto` chooses device and precision by what the machine has."""

    path: str
    base: str | None = None
    name: str = ""
    device: str = "auto"
    dtype: str = "auto"
    load_8bit: bool = False
    load_4bit: bool = False
