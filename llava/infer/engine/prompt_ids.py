"""Turn requests into token ids, and refuse those that cannot be answered. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.infer.engine.requests import Request
from llava.prompts.encode import Tokenizer, encode_prompt


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes requests for one model.

    Attributes:
        tokenizer: The model's.
        patches: The positions of an image of one view; None if the model has no vision tower.
        context_length: The most positions of a prompt and its answer.
    """

    tokenizer: Tokenizer
    patches: int | None
    context_length: int

    def check(self, requests: Iterable[Request]) -> None:
        """Check all requests before the first is answered, without encoding those that are short enough.

        Raises:
            DataError: One cannot be answered.
        """
        for request in requests:
            self._require_images(request)
            # A token is a byte or more of the text. Where a tokenizer breaks that rule, `encode` finds out.
            if self._count_positions(len(request.prompt.encode()), request) >= self.context_length:
                self.encode(request)

    def encode(self, request: Request) -> list[int]:
        """Return the token ids of a request, with -200 for an image.

        Raises:
            DataError: Its numbers of `<image>` and images differ, it has an image and the model no tower, or
                it leaves no room for an answer.
        """
        self._require_images(request)
        ids = encode_prompt(request.prompt, self.tokenizer, IMAGE_TOKEN_INDEX)
        self.require_room(request, self._count_positions(len(ids), request))
        return ids

    def require_room(self, request: Request, positions: int) -> None:
        """Check that a prompt of so many positions leaves room for an answer.

        Raises:
            DataError: It does not. The original cuts the prompt's end instead.
        """
        if positions >= self.context_length:
            raise DataError(
                f"{request.name}: the prompt takes {positions} positions with its images, and the model has "
                f"{self.context_length}; shorten the question, or what was said before it",
                code="prompt-too-long",
            )

    def _require_images(self, request: Request) -> None:
        places = request.prompt.count(DEFAULT_IMAGE_TOKEN)
        if places != len(request.images):
            raise DataError(
                f"{request.name}: the prompt has {places} <image> and the request {len(request.images)} "
                "images; each needs the other",
                code="image-count",
            )
        if request.images and self.patches is None:
            raise DataError(
                f"{request.name}: has an image, but the model is a plain language model",
                code="missing-vision-tower",
            )

    def _count_positions(self, ids: int, request: Request) -> int:
        """Count the positions of a prompt of so many ids, one view an image."""
        return ids + len(request.images) * ((self.patches or 1) - 1)


def count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Count the ids that all prompts start with."""
    shared = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return shared
