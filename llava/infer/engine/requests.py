"""The engine's inputs and outputs: requests and replies, generation parameters, the choice of a model.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.infer.digests import FileContent
from llava.prompts.encode import Tokenizer, tokenizer_image_token

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
    """

    text: str
    margin: float | None = None
    lead: float | None = None
    images: tuple[FileContent, ...] = ()


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


# Another order of sums changes logits by rounding. One step is the precision's epsilon times the largest
# logit; an answer whose lead is below 64, 8 or 4 steps is a close call. scripts/bench/README.md says why.
CLOSE_LEADS = {"float32": 64 * 2.0**-23, "float16": 8 * 2.0**-10, "bfloat16": 4 * 2.0**-7}


def encode_request(request: Request, tokenizer: Tokenizer, *, has_tower: bool) -> list[int]:
    """Return the token ids of a request, with -200 for an image.

    Raises:
        DataError: Its numbers of `<image>` and images differ, or it has an image and the model no tower.
    """
    ids: list[int] = tokenizer_image_token(request.prompt, tokenizer, IMAGE_TOKEN_INDEX)
    places = ids.count(IMAGE_TOKEN_INDEX)
    if places != len(request.images):
        raise DataError(
            f"{request.name}: the prompt has {places} <image> and the request {len(request.images)} "
            "images; each needs the other",
            code="image-count",
        )
    if request.images and not has_tower:
        raise DataError(
            f"{request.name}: has an image, but the model is a plain language model",
            code="missing-vision-tower",
        )
    return ids


def require_room(request: Request, positions: int, context_length: int) -> None:
    """Check that a prompt of so many positions leaves room for an answer.

    Raises:
        DataError: It does not. The original cuts the prompt's end instead.
    """
    if positions >= context_length:
        raise DataError(
            f"{request.name}: the prompt takes {positions} positions with its images, and the model has "
            f"{context_length}; shorten the question, or what was said before it",
            code="prompt-too-long",
        )
