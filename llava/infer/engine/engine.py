"""Answer a list of requests, encoding each image once and reading each shared prefix once.

See the package's docstring for the terms. Shapes: L positions, D width, P patches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PretrainedConfig
from transformers.generation.streamers import BaseStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import DataError, SettingsError
from llava.infer.engine.budget import measure_budget
from llava.infer.engine.generate import ask_model, find_stop_ids, generate
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.image_loading import Pixels, decode_ahead, load_pixels
from llava.infer.engine.load import Loaded
from llava.infer.engine.packed import PromptGroup, continue_groups, count_fitting_groups
from llava.infer.engine.requests import Generation, ImageSource, Reply, Request
from llava.infer.engine.schedule import Group, plan_windows
from llava.model.overrides import find_change
from llava.model.splice import splice
from llava.prompts.encode import tokenizer_image_token

logger = logging.getLogger(__name__)

# Batching changes logits by rounding. One step is the precision's epsilon times the largest logit; an answer
# whose margin is below this many steps is computed again on its own. scripts/bench/README.md has the reasons.
_ROUNDING_STEPS = {torch.float32: 64.0, torch.float16: 8.0, torch.bfloat16: 4.0}

# Implementations of attention that take additive masks, which prompts in one row need.
_MASKED_ATTENTION = ("sdpa", "eager", "packed")

Features = dict[ImageSource, torch.Tensor]


class Engine:
    """Answers requests with one model and one set of generation parameters."""

    def __init__(
        self, loaded: Loaded, generation: Generation, *, batch_size: int | None = None, exact: bool = True
    ) -> None:
        """Prepare to answer with `loaded`.

        Args:
            loaded: The model.
            generation: How tokens are chosen.
            batch_size: The most greedy prompts of a pass; 1 answers one prompt at a time, None uses what fits
                into the device's memory.
            exact: Compute an answer again on its own if rounding in the batch could have changed it, so that
                replies are the same as one prompt at a time.
        """
        self._loaded = loaded
        self._generation = generation
        self._one_at_a_time = batch_size == 1 or not generation.is_greedy
        self._budget = measure_budget(loaded, batch_size)
        self._exact = exact
        self._change: str | None = None  # what other code has changed in the model, to say it once
        self._stop_ids = find_stop_ids(loaded)
        self.asked_again = 0
        """How many requests of the last `answer` call were computed again on their own."""

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        config: PretrainedConfig = self._loaded.model.config
        return config

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) once for each request, in the order of the schedule.

        Raises:
            DataError: An image is broken, a prompt leaves no room for an answer, or its numbers of `<image>`
                and images differ. The message starts with the request's name.
            CheckpointError: The model's logits are NaN or infinite.
        """
        self.asked_again = 0
        prompts = [self._tokenize(request) for request in requests]
        lengths = [self._count_positions(*prompt) for prompt in zip(requests, prompts, strict=True)]
        windows = plan_windows(
            [request.images for request in requests], prompts, lengths, self._budget.groups
        )
        features: Features = {}
        names = {source: request.name for request in reversed(requests) for source in request.images}
        is_changed = self._notice_changes()
        for window, images in decode_ahead(windows, names, self._load_pixels):
            if is_changed:
                replies = self._ask_one_by_one(window.groups, requests, prompts, images)
            else:
                new = {source: image for source, image in images.items() if source not in features}
                features |= self._encode_images(new)
                replies = self._answer_groups(window.groups, requests, prompts, features)
            for index, reply in replies:
                if self._is_doubtful(reply):
                    reply = self._answer_again(requests[index], prompts[index], images)
                contents = (images[source].content for source in requests[index].images)
                yield index, replace(reply, images=tuple(content for content in contents if content))
            for source in window.last:
                features.pop(source, None)
        if self.asked_again:
            logger.info(
                f"{self.asked_again} of {len(requests)} answers were close calls, computed again on their own"
            )

    def reply_streaming(self, request: Request, streamer: BaseStreamer) -> Reply:
        """Answer one request, passing each token to `streamer` at once."""
        images = {image: self._load_pixels(image) for image in request.images}
        ids = self._tokenize(request)
        if self._notice_changes():
            return self._ask_model(request, ids, images, streamer)
        prompt = self._embed(request, ids, self._encode_images(images))
        return Reply(self._decode(generate(self._loaded, prompt, self._generation, streamer=streamer)))

    def _notice_changes(self) -> bool:
        """Return whether other code has changed the model: shortcuts would pass over what it does."""
        change = find_change(self._loaded.model)
        attention = self.config._attn_implementation
        if attention not in _MASKED_ATTENTION:
            change = f"attention is computed by {attention}"
        if change is not None and change != self._change:
            logger.warning(f"{change}: each prompt is answered on its own, by the model's own generate")
        self._change = change
        return change is not None

    def _ask_one_by_one(
        self,
        groups: Sequence[Group],
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        images: Mapping[ImageSource, Pixels],
    ) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) for all requests of the groups, by the model's `generate`."""
        for group in groups:
            for index in group.requests:
                yield index, self._ask_model(requests[index], prompts[index], images)

    def _ask_model(
        self,
        request: Request,
        ids: Sequence[int],
        images: Mapping[ImageSource, Pixels],
        streamer: BaseStreamer | None = None,
    ) -> Reply:
        """Answer a request by the model's own `generate`."""
        pixels = [images[source] for source in request.images]
        return Reply(self._decode(ask_model(self._loaded, ids, pixels, self._generation, streamer)))

    def _tokenize(self, request: Request) -> list[int]:
        ids = tokenizer_image_token(request.prompt, self._loaded.tokenizer, IMAGE_TOKEN_INDEX)
        slots = ids.count(IMAGE_TOKEN_INDEX)
        if slots != len(request.images):
            raise DataError(
                f"{request.name}: the prompt has {slots} <image> and the request {len(request.images)} "
                "images; each needs the other",
                code="image-count",
            )
        if request.images and self._loaded.image_processor is None:
            raise DataError(
                f"{request.name}: has an image, but the model is a plain language model",
                code="missing-vision-tower",
            )
        return ids

    def _count_positions(self, request: Request, ids: Sequence[int]) -> int:
        """Count the prompt's positions, with one view per image.

        Raises:
            DataError: They leave no room for an answer. The original cuts the prompt's end instead.
        """
        patches = self._loaded.model.get_vision_tower().num_patches if request.images else 0
        positions = len(ids) + len(request.images) * (patches - 1)
        self._require_room(request, positions)
        return positions

    def _require_room(self, request: Request, positions: int) -> None:
        if positions >= self._loaded.context_length:
            raise DataError(
                f"{request.name}: the prompt takes {positions} positions with its images, and the model has "
                f"{self._loaded.context_length}; shorten the question",
                code="prompt-too-long",
            )

    def _load_pixels(self, source: ImageSource) -> Pixels:
        return load_pixels(source, self._loaded.image_processor, self.config)

    @torch.inference_mode()
    def _encode_images(self, images: Mapping[ImageSource, Pixels]) -> Features:
        """Encode each image to a (P, D) block; images without tiles are encoded in batches."""
        model, device = self._loaded.model, self._loaded.device
        features: Features = {}
        plain = [source for source, image in images.items() if image.tensor.ndim == 3]
        while plain:
            patches = model.get_vision_tower().num_patches
            count = max(min(self._budget.positions // patches, self._budget.prompts), 1)
            stacked = torch.stack([images[source].tensor for source in plain[:count]])
            try:
                encoded = model.encode_views(stacked.to(device, model.dtype))
            except torch.cuda.OutOfMemoryError as error:
                self._halve_budget(error)
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
        """Embed a prompt, or a part of it with all its images, as (L, D)."""
        words = self._loaded.model.get_input_embeddings()
        blocks = [features[source] for source in request.images] or [words.weight[:0]]
        spliced = splice(torch.tensor([ids], device=self._loaded.device), None, None, words, blocks)
        self._require_room(request, len(spliced.embeds[0]))
        return spliced.embeds[0]

    def _answer_groups(
        self,
        groups: Sequence[Group],
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        features: Features,
    ) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) for all requests of the groups."""
        if self._one_at_a_time:
            for group in groups:
                for index in group.requests:
                    yield index, self._answer_one(self._embed(requests[index], prompts[index], features))
            return
        waiting = []
        for group in groups:
            first, ids = requests[group.requests[0]], prompts[group.requests[0]]
            prefix = self._embed(first, ids[: group.shared], features)
            suffixes = tuple(tuple(prompts[index][group.shared :]) for index in group.requests)
            for index, suffix in zip(group.requests, suffixes, strict=True):
                self._require_room(requests[index], len(prefix) + len(suffix))
            waiting.append(PromptGroup(prefix, group.requests, suffixes))
        for index, continuation in self._continue(waiting):
            yield index, self._make_reply(continuation)

    def _continue(self, waiting: list[PromptGroup]) -> Iterator[tuple[int, Continuation]]:
        """Yield from `continue_groups` for all groups, halving the budget whenever memory runs out."""
        while waiting:
            batch = waiting[: count_fitting_groups(waiting, self._budget)]
            done = set()
            try:
                for index, continuation in continue_groups(
                    self._loaded.model,
                    batch,
                    self._budget,
                    max_new_tokens=self._generation.max_new_tokens,
                    stop_ids=self._stop_ids,
                ):
                    done.add(index)
                    yield index, continuation
            except torch.cuda.OutOfMemoryError as error:
                self._halve_budget(error)
            left = [group.without(done) for group in batch]
            waiting = [group for group in left if group.indices] + waiting[len(batch) :]

    def _halve_budget(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Halve the budget after memory ran out; raise a `SettingsError` if it is a single prompt already."""
        try:
            self._budget = self._budget.halved()
        except SettingsError as exhausted:
            raise exhausted from error
        logger.info(f"out of memory: from here on {self._budget.positions} positions at a time")
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer_one(self, prompt: torch.Tensor) -> Reply:
        """Answer one prompt, (L, D), on its own."""
        if not self._generation.is_greedy:
            return Reply(self._decode(generate(self._loaded, prompt, self._generation)))
        continuation = continue_prompt(
            self._loaded.model,
            prompt,
            max_new_tokens=self._generation.max_new_tokens,
            stop_ids=self._stop_ids,
        )
        return self._make_reply(continuation)

    def _answer_again(
        self, request: Request, ids: Sequence[int], images: Mapping[ImageSource, Pixels]
    ) -> Reply:
        """Answer a request with no other prompt or image in the batch."""
        self.asked_again += 1
        features: Features = {}
        for source in request.images:
            features |= self._encode_images({source: images[source]})
        return self._answer_one(self._embed(request, ids, features))

    def _is_doubtful(self, reply: Reply) -> bool:
        """Return whether rounding in the batch could have changed the reply."""
        if not self._exact or self._one_at_a_time or reply.margin is None or reply.scale is None:
            return False
        dtype = self._loaded.model.dtype
        return reply.margin < _ROUNDING_STEPS[dtype] * torch.finfo(dtype).eps * reply.scale

    def _make_reply(self, continuation: Continuation) -> Reply:
        return Reply(self._decode(continuation.ids), continuation.margin, continuation.scale)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()
