"""Turn requests into what vLLM is asked, and what it says into replies; leave close calls unanswered.

vLLM gets our token ids and our square pictures, so only its arithmetic is its own. Knows nothing of how it
is reached: `offline` and `server` do.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import AnswersError
from llava.images import crop_picture
from llava.infer.digests import FileContent
from llava.infer.engine.image_loading import read_ahead, read_source
from llava.infer.engine.prompt_ids import PromptEncoder
from llava.infer.engine.requests import Generation, ImageSource, Reply, Request
from llava.infer.engine.rounding import CLOSE_LEADS, limit_by
from llava.infer.engine.schedule import Window, plan_windows
from llava.infer.jobs.run import Answerer
from llava.infer.vllm.front import Front

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

# vLLM tells log-probabilities, not logits, so a LLaMA's usual largest logit stands for the largest of a step.
_LARGEST_LOGIT = 32.0
# Its kernels also round at other places than ours, not only in another order of sums.
_OTHER_KERNELS = 2.0

_GROUPS_AHEAD = 256  # whose images are decoded while those before them are answered
_COMPARED = 8  # questions that a server and the engine must answer alike


@dataclass(frozen=True, slots=True)
class Picture:
    """What the model sees of an image; equal keys are equal pictures."""

    image: Image
    key: str
    content: FileContent | None = None  # of its file


@dataclass(frozen=True, slots=True)
class VllmPrompt:
    """A prompt for vLLM: token ids, with one id in the place of each picture."""

    index: int
    ids: tuple[int, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """What vLLM said: token ids, and for each the log-probabilities of the likeliest tokens."""

    ids: Sequence[int]
    likeliest: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class GreedySampling:
    """vLLM's sampling parameters of a greedy answer."""

    max_tokens: int
    stop_token_ids: list[int]
    temperature: float = 0.0
    logprobs: int = 2
    detokenize: bool = False


class Transport(Protocol):
    """How vLLM is reached."""

    @property
    def image_token(self) -> int:
        """The token id that stands for a picture in a prompt."""

    def generate(
        self, batches: Iterable[list[list[VllmPrompt]]], sampling: GreedySampling
    ) -> Iterator[tuple[VllmPrompt, Generated]]:
        """Yield each prompt with what was said to it. A batch is groups that share their pictures."""


class VllmAnswerer:
    """Answers requests greedily in vLLM, except those that rounding could have changed."""

    def __init__(
        self,
        front: Front,
        transport: Transport,
        generation: Generation,
        *,
        dtype: str,
        exact: bool = True,
        compare_with: Callable[[], Answerer] | None = None,
    ) -> None:
        """Prepare to answer.

        Args:
            front: The model, without its weights.
            transport: How vLLM is reached.
            generation: How answers are generated; must be greedy.
            dtype: The precision in which vLLM computes.
            exact: Leave close calls unanswered.
            compare_with: Opens what must give the same answers to the first questions.
        """
        assert generation.is_greedy
        self._front, self._transport, self._exact = front, transport, exact
        self.close_lead = CLOSE_LEADS[dtype] * _OTHER_KERNELS
        """An answer with a smaller lead is a close call."""
        self._sampling = GreedySampling(generation.max_new_tokens, sorted(front.stop_ids))
        self._compare_with = compare_with
        self.close_calls = 0
        """How many requests of the last `answer` call were left unanswered."""

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        return self._front.config

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) for all requests whose answer is certain.

        Raises:
            DataError: An image is broken, a prompt leaves no room for an answer, or its numbers of `<image>`
                and images differ.
            AnswersError: vLLM answers as another model does.
        """
        if self._compare_with is not None:
            self._compare(requests[:_COMPARED], self._compare_with())
            self._compare_with = None
        self.close_calls = 0
        for index, reply in self._ask(requests):
            if self._exact and self._is_close(reply):
                self.close_calls += 1
            else:
                yield index, reply
        logger.info(
            f"vLLM: {self.close_calls} of {len(requests)} answers are close calls, with a margin under "
            f"{self.close_lead * _LARGEST_LOGIT:.3g}, left to the engine"
        )

    def _compare(self, requests: Sequence[Request], other: Answerer) -> None:
        """Compare the certain answers to some requests, and their margins, with another's.

        A model that was trained otherwise may give the same short answers, but not with the same margins. How
        far these are apart then says which answers are close calls.

        Raises:
            AnswersError: One differs.
        """
        certain = [
            (requests[index], reply) for index, reply in self._ask(requests) if not self._is_close(reply)
        ]
        moves = []
        for index, reply in other.answer([request for request, _ in certain]):
            request, theirs = certain[index]
            apart = abs((reply.margin or 0.0) - (theirs.margin or 0.0)) / _LARGEST_LOGIT
            if reply.text != theirs.text or apart > self.close_lead:
                raise AnswersError(
                    f"{request.name}: the server says {theirs.text[:60]!r} with a margin of "
                    f"{theirs.margin:.3g}, the model {reply.text[:60]!r} with {reply.margin:.3g}: it serves "
                    "another model, or in another precision; serve what `llava export` writes",
                    code="other-model",
                )
            moves.append(apart)
        self.close_lead = limit_by(moves, self.close_lead)

    def _ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        front = self._front
        encoder = PromptEncoder(front.tokenizer, front.patches, front.context_length)
        encoder.check(requests)
        windows = read_ahead(
            plan_windows(requests, _GROUPS_AHEAD), requests, self._read_picture, encoder.encode
        )
        for prompt, said in self._transport.generate(self._batches(windows), self._sampling):
            yield prompt.index, self._reply(prompt, said)

    def _batches(
        self, windows: Iterable[tuple[Window, dict[ImageSource, Picture], dict[int, list[int]]]]
    ) -> Iterator[list[list[VllmPrompt]]]:
        """Yield the prompts of each window, image by image, so that vLLM's prefix cache has their start."""
        for window, pictures, ids in windows:
            batch = []
            for group in window.groups:
                shown = tuple(pictures[source] for source in group.images)
                batch.append([VllmPrompt(index, self._place(ids[index]), shown) for index in group.requests])
            yield batch

    def _place(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Put vLLM's image token in the place of -200."""
        token = self._transport.image_token
        return tuple(token if index == IMAGE_TOKEN_INDEX else index for index in ids)

    def _read_picture(self, source: ImageSource) -> Picture:
        image, content = read_source(source)
        picture = crop_picture(image, self._front.image_processor, self._front.config)
        return Picture(picture, hash_picture(picture), content)

    def _reply(self, prompt: VllmPrompt, said: Generated) -> Reply:
        margin = least_margin(said)
        ids = list(itertools.takewhile(lambda token: token not in self._front.stop_ids, said.ids))
        # Cut short by the server's own limit: the engine goes on.
        is_whole = len(ids) < len(said.ids) or len(ids) == self._sampling.max_tokens
        text = self._front.tokenizer.decode(ids, skip_special_tokens=True).strip()
        contents = tuple(picture.content for picture in prompt.pictures if picture.content)
        return Reply(text, margin, margin / _LARGEST_LOGIT if is_whole else 0.0, contents)

    def _is_close(self, reply: Reply) -> bool:
        return reply.lead is not None and reply.lead < self.close_lead


def hash_picture(picture: Image) -> str:
    """Return a key that equal pictures share."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def least_margin(said: Generated) -> float:
    """Return the smallest difference between the two likeliest tokens' log-probabilities over all steps.

    It is that between their logits, too. A step with fewer than two counts as 0.
    """
    margins = [0.0]
    if said.likeliest and all(len(step) > 1 for step in said.likeliest):
        best = (sorted(step, reverse=True) for step in said.likeliest)
        margins = [first - second for first, second, *_ in best]
    return min(margins)
