"""The engine: any list of requests in, their replies out, images decoded and encoded once each.

Knows nothing of files, questions or benchmarks. Greedy requests are batched; sampled and beam-searched ones
go through transformers' `generate`, one at a time. L positions, D width, P patches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import DataError, LlavaError
from llava.images import load_image_from_base64, process_images, read_image
from llava.infer.generate import generate, stop_ids
from llava.infer.greedy import continue_greedily
from llava.infer.load import Loaded
from llava.infer.plan import Window, plan
from llava.infer.requests import Generation, ImageFile, ImageSource, Reply, Request
from llava.model.splice import splice
from llava.prompts.encode import tokenizer_image_token

logger = logging.getLogger(__name__)

# A choice between two tokens that was closer than this many logits is made again alone: batching moves logits
# by rounding, about 1e-5 in float32 and some steps of the precision in the others.
_DOUBTFUL = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
_DECODERS = 4

Features = dict[ImageSource, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as the model sees it, (3, S, S) or in tiles (views, 3, S, S); its first (width, height)."""

    tensor: torch.Tensor
    size: tuple[int, int]


class Engine:
    """Answers requests with one model and one way of picking tokens."""

    def __init__(
        self, loaded: Loaded, generation: Generation, *, batch_size: int | None = None, exact: bool = True
    ) -> None:
        """Prepare to answer with `loaded`.

        Args:
            loaded: The model.
            generation: How tokens are picked.
            batch_size: Greedy prompts at a time; 8 on an accelerator and 4 on a CPU if None.
            exact: Ask again alone where the batch could have tipped the answer, so that replies are those of
                one prompt at a time.
        """
        self._loaded = loaded
        self._generation = generation
        self._batch_size = batch_size or (4 if loaded.device.type == "cpu" else 8)
        self._exact = exact
        self._stop_ids = stop_ids(loaded)
        self._asked_again = 0

    @property
    def config(self) -> Any:
        """The model's config."""
        return self._loaded.model.config

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """(index in `requests`, reply), each once, in the order they are found.

        Raises:
            DataError: An image is broken, a prompt leaves no room for an answer, or has more or fewer
                `<image>` than images; the message opens with the request's name.
        """
        self._asked_again = 0
        prompts = [self._encode(request) for request in requests]
        lengths = [self._positions(*prompt) for prompt in zip(requests, prompts, strict=True)]
        windows = plan([request.images for request in requests], lengths, self._batch_size)
        features: Features = {}
        pool = ThreadPoolExecutor(_DECODERS)
        try:
            for window, pixels in self._decoded_ahead(windows, requests, pool):
                features |= self._features({s: image for s, image in pixels.items() if s not in features})
                for batch in window.batches:
                    rows = {i: self._embed(requests[i], prompts[i], features) for i in batch}
                    for index, reply in zip(rows, self._reply(list(rows.values())), strict=True):
                        if self._is_doubtful(reply):
                            reply = self._reply_alone(requests[index], prompts[index], pixels)
                        yield index, reply
                for source in window.last:
                    del features[source]
        finally:
            pool.shutdown(cancel_futures=True)
        if self._asked_again:
            logger.info(
                f"{self._asked_again} of {len(requests)} answers were close calls and asked again alone"
            )

    def reply_streaming(self, request: Request, streamer: Any) -> Reply:
        """The reply to one request, each token shown to a `streamer` of transformers as it comes."""
        row = self._embed(request, self._encode(request), self._features(self._pixels_of(request)))
        return self._said(generate(self._loaded, row, self._generation, streamer=streamer))

    def _encode(self, request: Request) -> list[int]:
        ids = tokenizer_image_token(request.prompt, self._loaded.tokenizer, IMAGE_TOKEN_INDEX)
        slots = ids.count(IMAGE_TOKEN_INDEX)
        if slots != len(request.images):
            raise DataError(
                f"{request.name}: the prompt has {slots} <image> and the request {len(request.images)} "
                "images; each needs the other"
            )
        if request.images and self._loaded.image_processor is None:
            raise DataError(f"{request.name}: has an image, but the model is a plain language model")
        return ids

    def _positions(self, request: Request, ids: Sequence[int]) -> int:
        """How many positions the prompt takes, an image counted without its tiles.

        Raises:
            DataError: They leave no room for an answer. The original cut the prompt, cue to answer included.
        """
        patches = self._loaded.model.get_vision_tower().num_patches if request.images else 0
        positions = len(ids) + len(request.images) * (patches - 1)
        self._require_room(request, positions)
        return positions

    def _require_room(self, request: Request, positions: int) -> None:
        if positions >= self._loaded.context_length:
            raise DataError(
                f"{request.name}: the prompt takes {positions} positions with its images, and the model has "
                f"{self._loaded.context_length}; shorten the question"
            )

    def _pixels(self, source: ImageSource) -> Pixels:
        if isinstance(source, ImageFile):
            image = read_image(source.path)
        else:
            image = load_image_from_base64(source.base64)
        return Pixels(process_images([image], self._loaded.image_processor, self.config)[0], image.size)

    def _pixels_of(self, request: Request) -> dict[ImageSource, Pixels]:
        return {source: self._pixels(source) for source in request.images}

    def _decoded_ahead(
        self, windows: Sequence[Window], requests: Sequence[Request], pool: Executor
    ) -> Iterator[tuple[Window, dict[ImageSource, Pixels]]]:
        """Each window with its images; while one is answered the next one's are decoded."""
        names = {source: request.name for request in reversed(requests) for source in request.images}
        decoding: dict[ImageSource, Future[Pixels]] = {}
        for number, window in enumerate(windows):
            for ahead in windows[number : number + 2]:
                for source in ahead.images:
                    if source not in decoding:
                        decoding[source] = pool.submit(self._pixels, source)
            yield window, {source: _result(decoding[source], names[source]) for source in window.images}
            for source in window.last:
                del decoding[source]

    @torch.inference_mode()
    def _features(self, pixels: Mapping[ImageSource, Pixels]) -> Features:
        """One (P, D) block an image; images without tiles are encoded a batch at a time."""
        model, device = self._loaded.model, self._loaded.device
        features: Features = {}
        plain = [source for source, image in pixels.items() if image.tensor.ndim == 3]
        for start in range(0, len(plain), self._batch_size):
            batch = plain[start : start + self._batch_size]
            stacked = torch.stack([pixels[source].tensor for source in batch])
            features |= zip(batch, model.encode_views(stacked.to(device, model.dtype)), strict=True)
        for source, image in pixels.items():
            if image.tensor.ndim != 3:
                views = [image.tensor.to(device, model.dtype)]
                features[source] = model.encode_views(views, [image.size])[0]
        return features

    @torch.inference_mode()
    def _embed(self, request: Request, ids: Sequence[int], features: Features) -> torch.Tensor:
        """The prompt as (L, D) embeddings, images in place."""
        words = self._loaded.model.get_input_embeddings()
        blocks = [features[source] for source in request.images] or [words.weight[:0]]
        spliced = splice(torch.tensor([ids], device=self._loaded.device), None, None, words, blocks)
        self._require_room(request, len(spliced.embeds[0]))
        return spliced.embeds[0]

    def _reply(self, rows: Sequence[torch.Tensor]) -> list[Reply]:
        if not self._generation.is_greedy:
            return [self._said(generate(self._loaded, row, self._generation)) for row in rows]
        found = continue_greedily(
            self._loaded.model,
            rows,
            max_new_tokens=self._generation.max_new_tokens,
            stop_ids=self._stop_ids,
        )
        return [self._said(one.ids, one.margin) for one in found]

    def _reply_alone(
        self, request: Request, ids: Sequence[int], pixels: Mapping[ImageSource, Pixels]
    ) -> Reply:
        """The reply with nothing else in the batch, neither prompt nor image."""
        self._asked_again += 1
        features: Features = {}
        for source in request.images:
            features |= self._features({source: pixels[source]})
        return self._reply([self._embed(request, ids, features)])[0]

    def _is_doubtful(self, reply: Reply) -> bool:
        if not self._exact or self._batch_size == 1 or reply.margin is None:
            return False
        return reply.margin < _DOUBTFUL.get(self._loaded.model.dtype, _DOUBTFUL[torch.bfloat16])

    def _said(self, ids: Sequence[int], margin: float | None = None) -> Reply:
        return Reply(self._loaded.tokenizer.decode(ids, skip_special_tokens=True).strip(), margin)


def _result(decoded: Future[Pixels], name: str) -> Pixels:
    try:
        return decoded.result()
    except LlavaError as error:
        raise DataError(f"{name}: {error}") from error
