"""The engine: any list of requests in, their replies out, images decoded and encoded once each.

Knows nothing of files, questions or benchmarks. Greedy requests about the same images are read as one group,
others go through transformers' `generate`, one at a time. L positions, D width, P patches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import DataError, SettingsError
from llava.infer.engine.budget import measure_budget
from llava.infer.engine.generate import find_stop_ids, generate
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.image_loading import Pixels, decode_ahead, load_pixels
from llava.infer.engine.load import Loaded
from llava.infer.engine.packed import Prompts, continue_groups, count_fitting_groups
from llava.infer.engine.requests import Generation, ImageSource, Reply, Request
from llava.infer.engine.schedule import Group, plan_windows
from llava.model.splice import splice
from llava.prompts.encode import tokenizer_image_token

logger = logging.getLogger(__name__)

# Batching moves logits by rounding, in steps: the precision's epsilon times the largest logit. Where two
# tokens were closer than this many, the prompt is asked again alone. Why so many: scripts/bench/README.md.
_ROUNDING_STEPS = {torch.float32: 64.0, torch.float16: 8.0, torch.bfloat16: 4.0}

Features = dict[ImageSource, torch.Tensor]


class Engine:
    """Answers requests with one model and one way of picking tokens."""

    def __init__(
        self, loaded: Loaded, generation: Generation, *, batch_size: int | None = None, exact: bool = True
    ) -> None:
        """Prepare to answer with `loaded`.

        Args:
            loaded: The model.
            generation: How tokens are picked.
            batch_size: The most greedy prompts at a time; 1 asks each alone, None takes what the device has
                room for.
            exact: Ask again alone where the batch could have tipped the answer, so that replies are those of
                one prompt at a time.
        """
        self._loaded = loaded
        self._generation = generation
        self._one_at_a_time = batch_size == 1 or not generation.is_greedy
        self._budget = measure_budget(loaded, batch_size)
        self._exact = exact
        self._stop_ids = find_stop_ids(loaded)
        self.asked_again = 0
        """How many of the last `answer`'s requests were close calls."""

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
        self.asked_again = 0
        prompts = [self._encode(request) for request in requests]
        lengths = [self._positions(*prompt) for prompt in zip(requests, prompts, strict=True)]
        windows = plan_windows(
            [request.images for request in requests], prompts, lengths, self._budget.groups
        )
        features: Features = {}
        names = {source: request.name for request in reversed(requests) for source in request.images}
        for window, images in decode_ahead(windows, names, self._pixels):
            features |= self._features({s: image for s, image in images.items() if s not in features})
            for index, reply in self._replies(window.groups, requests, prompts, features):
                if self._is_doubtful(reply):
                    reply = self._reply_alone(requests[index], prompts[index], images)
                yield index, reply
            for source in window.last:
                del features[source]
        if self.asked_again:
            logger.info(
                f"{self.asked_again} of {len(requests)} answers were close calls and asked again alone"
            )

    def reply_streaming(self, request: Request, streamer: Any) -> Reply:
        """The reply to one request, each token shown to a `streamer` of transformers as it comes."""
        row = self._embed(
            request,
            self._encode(request),
            self._features({image: self._pixels(image) for image in request.images}),
        )
        return Reply(self._text(generate(self._loaded, row, self._generation, streamer=streamer)))

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
        return load_pixels(source, self._loaded.image_processor, self.config)

    @torch.inference_mode()
    def _features(self, images: Mapping[ImageSource, Pixels]) -> Features:
        """One (P, D) block an image; images without tiles are encoded a batch at a time."""
        model, device = self._loaded.model, self._loaded.device
        features: Features = {}
        plain = [source for source, image in images.items() if image.tensor.ndim == 3]
        while plain:
            count = max(
                min(self._budget.tokens // model.get_vision_tower().num_patches, self._budget.rows), 1
            )
            stacked = torch.stack([images[source].tensor for source in plain[:count]])
            try:
                encoded = model.encode_views(stacked.to(device, model.dtype))
            except torch.cuda.OutOfMemoryError as error:
                self._take_half(error)
                continue
            features |= zip(plain[:count], encoded, strict=True)
            del plain[:count]
        for source, image in images.items():
            if image.tensor.ndim != 3:
                views = [image.tensor.to(device, model.dtype)]
                features[source] = model.encode_views(views, [image.size])[0]
        return features

    @torch.inference_mode()
    def _embed(self, request: Request, ids: Sequence[int], features: Features) -> torch.Tensor:
        """The prompt, or a part of it that has all its images, as (L, D) embeddings, images in place."""
        words = self._loaded.model.get_input_embeddings()
        blocks = [features[source] for source in request.images] or [words.weight[:0]]
        spliced = splice(torch.tensor([ids], device=self._loaded.device), None, None, words, blocks)
        self._require_room(request, len(spliced.embeds[0]))
        return spliced.embeds[0]

    def _replies(
        self,
        groups: Sequence[Group],
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        features: Features,
    ) -> Iterator[tuple[int, Reply]]:
        """(index in `requests`, reply) of all in the groups."""
        if self._one_at_a_time:
            for group in groups:
                for index in group.requests:
                    yield index, self._reply(self._embed(requests[index], prompts[index], features))
            return
        waiting = []
        for group in groups:
            first, ids = requests[group.requests[0]], prompts[group.requests[0]]
            prefix = self._embed(first, ids[: group.shared], features)
            rests = tuple(tuple(prompts[index][group.shared :]) for index in group.requests)
            for index, rest in zip(group.requests, rests, strict=True):
                self._require_room(requests[index], len(prefix) + len(rest))
            waiting.append(Prompts(prefix, group.requests, rests))
        for index, found in self._continue(waiting):
            yield index, self._said(found)

    def _continue(self, waiting: list[Prompts]) -> Iterator[tuple[int, Continuation]]:
        """What `continue_groups` finds for all groups; with half the budget where memory runs out."""
        while waiting:
            together = waiting[: count_fitting_groups(waiting, self._budget)]
            done = set()
            try:
                for index, found in continue_groups(
                    self._loaded.model,
                    together,
                    self._budget,
                    max_new_tokens=self._generation.max_new_tokens,
                    stop_ids=self._stop_ids,
                ):
                    done.add(index)
                    yield index, found
            except torch.cuda.OutOfMemoryError as error:
                self._take_half(error)
            left = [group.without(done) for group in together]
            waiting = [group for group in left if group.names] + waiting[len(together) :]

    def _take_half(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Go on with half the budget after memory ran out, or raise a `SettingsError` if it is the least."""
        try:
            self._budget = self._budget.halved()
        except SettingsError as hopeless:
            raise hopeless from error
        logger.info(f"out of memory: from here on {self._budget.tokens} positions at a time")
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reply(self, prompt: torch.Tensor) -> Reply:
        """The reply to one prompt, (L, D), alone."""
        if not self._generation.is_greedy:
            return Reply(self._text(generate(self._loaded, prompt, self._generation)))
        found = continue_prompt(
            self._loaded.model,
            prompt,
            max_new_tokens=self._generation.max_new_tokens,
            stop_ids=self._stop_ids,
        )
        return self._said(found)

    def _reply_alone(
        self, request: Request, ids: Sequence[int], images: Mapping[ImageSource, Pixels]
    ) -> Reply:
        """The reply with nothing else in the batch, neither prompt nor image."""
        self.asked_again += 1
        features: Features = {}
        for source in request.images:
            features |= self._features({source: images[source]})
        return self._reply(self._embed(request, ids, features))

    def _is_doubtful(self, reply: Reply) -> bool:
        if not self._exact or self._one_at_a_time or reply.margin is None or reply.scale is None:
            return False
        dtype = self._loaded.model.dtype
        return reply.margin < _ROUNDING_STEPS[dtype] * torch.finfo(dtype).eps * reply.scale

    def _said(self, found: Continuation) -> Reply:
        return Reply(self._text(found.ids), found.margin, found.scale)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()
