"""Answer a list of requests, encoding each image once and reading each shared prefix once.

See the package's docstring for the terms. Shapes: L positions, D width, P patches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from transformers import PretrainedConfig
from transformers.generation.streamers import BaseStreamer

from llava.infer.engine.budget import measure_budget, try_alone
from llava.infer.engine.generate import IsStopped, ask_model, find_stop_ids, generate
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.image_loading import Pixels, decode_ahead, load_pixels
from llava.infer.engine.load import Loaded
from llava.infer.engine.packed import PromptGroup, continue_groups
from llava.infer.engine.requests import (
    CLOSE_LEADS,
    Generation,
    ImageSource,
    Reply,
    Request,
    encode_request,
    require_room,
)
from llava.infer.engine.schedule import Group, Window, plan_windows
from llava.model.in_memory import try_in_memory
from llava.model.overrides import find_change
from llava.model.splice import splice

logger = logging.getLogger(__name__)

# Implementations of attention that compute what `attention` does with slots.
_USUAL_ATTENTION = ("sdpa", "packed")

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
        names = {source: request.name for request in reversed(requests) for source in request.images}
        windows_read = decode_ahead(windows, names, self._load_pixels)
        pixels: dict[int, list[Pixels]] = {}  # of the requests in progress
        for index, reply in self._answer_windows(windows_read, requests, prompts, pixels):
            images = pixels.pop(index)
            if self._is_doubtful(reply):
                reply = self._answer_again(requests[index], prompts[index], images)
            yield index, replace(reply, images=tuple(image.content for image in images if image.content))
        if self.asked_again:
            logger.info(
                f"{self.asked_again} of {len(requests)} answers were close calls, computed again on their own"
            )

    def reply_streaming(
        self, request: Request, streamer: BaseStreamer, is_stopped: IsStopped | None = None
    ) -> Reply:
        """Answer one request, passing each token to `streamer` at once, until `is_stopped` says so.

        Raises:
            DataError, CheckpointError: As for `answer`.
        """
        images = {image: self._load_pixels(image) for image in request.images}
        ids = self._tokenize(request)
        if self._notice_changes():
            return self._ask_model(ids, [images[source] for source in request.images], streamer, is_stopped)
        prompt = self._embed(request, ids, self._encode_images(images))
        new = generate(self._loaded, prompt, self._generation, streamer=streamer, is_stopped=is_stopped)
        return Reply(self._decode(new))

    def _notice_changes(self) -> bool:
        """Return whether other code has changed the model: shortcuts would pass over what it does."""
        change = find_change(self._loaded.model)
        attention = self.config._attn_implementation
        if attention not in _USUAL_ATTENTION:
            change = f"attention is computed by {attention}"
        if change is not None and change != self._change:
            logger.warning(f"{change}: each prompt is answered on its own, by the model's own generate")
        self._change = change
        return change is not None

    def _answer_windows(
        self,
        windows: Iterable[tuple[Window, dict[ImageSource, Pixels]]],
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        pixels: dict[int, list[Pixels]],
    ) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) for all requests of the windows.

        The images of each request are put into `pixels`, by the request's index, before its reply comes.
        """
        is_changed = self._notice_changes()
        opened = self._open_groups(windows, pixels, encode=not is_changed)
        if not is_changed and not self._one_at_a_time:
            for index, continuation in continue_groups(
                self._loaded.model,
                (self._embed_group(group, requests, prompts, features) for group, features in opened),
                self._budget,
                max_new_tokens=self._generation.max_new_tokens,
                stop_ids=self._stop_ids,
            ):
                yield index, self._make_reply(continuation)
            return
        for group, features in opened:
            for index in group.requests:
                if is_changed:
                    yield index, self._ask_model(prompts[index], pixels[index])
                else:
                    yield index, self._answer_one(self._embed(requests[index], prompts[index], features))

    def _open_groups(
        self,
        windows: Iterable[tuple[Window, dict[ImageSource, Pixels]]],
        pixels: dict[int, list[Pixels]],
        *,
        encode: bool,
    ) -> Iterator[tuple[Group, Features]]:
        """Yield the groups of the windows with the features of their images, if these are to be encoded."""
        features: Features = {}
        for window, images in windows:
            if encode:
                new = {source: image for source, image in images.items() if source not in features}
                features |= self._encode_images(new)
            for group in window.groups:
                for index in group.requests:
                    pixels[index] = [images[source] for source in group.images]
                yield group, features
            for source in window.last:
                features.pop(source, None)

    def _embed_group(
        self,
        group: Group,
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        features: Features,
    ) -> PromptGroup:
        """Embed the prefix of a group."""
        first = group.requests[0]
        prefix = self._embed(requests[first], prompts[first][: group.shared], features)
        rests = tuple(tuple(prompts[index][group.shared :]) for index in group.requests)
        for index, rest in zip(group.requests, rests, strict=True):
            self._require_room(requests[index], len(prefix) + len(rest))
        return PromptGroup(prefix, group.requests, rests)

    def _ask_model(
        self,
        ids: Sequence[int],
        images: Sequence[Pixels],
        streamer: BaseStreamer | None = None,
        is_stopped: IsStopped | None = None,
    ) -> Reply:
        """Answer a prompt about these images by the model's own `generate`."""
        new = ask_model(self._loaded, ids, images, self._generation, streamer, is_stopped)
        return Reply(self._decode(new))

    def _tokenize(self, request: Request) -> list[int]:
        has_tower = self._loaded.image_processor is not None
        return encode_request(request, self._loaded.tokenizer, has_tower=has_tower)

    def _count_positions(self, request: Request, ids: Sequence[int]) -> int:
        """Count the prompt's positions, with one view per image; refuse one without room for an answer."""
        patches = self._loaded.model.get_vision_tower().num_patches if request.images else 0
        positions = len(ids) + len(request.images) * (patches - 1)
        self._require_room(request, positions)
        return positions

    def _require_room(self, request: Request, positions: int) -> None:
        require_room(request, positions, self._loaded.context_length)

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
            encoded = try_in_memory(partial(model.encode_views, stacked.to(device, model.dtype)))
            if encoded is None:
                self._budget.halve()
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

    def _answer_one(self, prompt: torch.Tensor) -> Reply:
        """Answer one prompt, (L, D), on its own."""
        if not self._generation.is_greedy:
            return Reply(self._decode(try_alone(partial(generate, self._loaded, prompt, self._generation))))
        work = partial(
            continue_prompt,
            self._loaded.model,
            prompt,
            max_new_tokens=self._generation.max_new_tokens,
            stop_ids=self._stop_ids,
        )
        return self._make_reply(try_alone(work))

    def _answer_again(self, request: Request, ids: Sequence[int], images: Sequence[Pixels]) -> Reply:
        """Answer a request with no other prompt or image in the batch."""
        self.asked_again += 1
        features: Features = {}
        for source, image in zip(request.images, images, strict=True):
            features |= self._encode_images({source: image})
        return self._answer_one(self._embed(request, ids, features))

    def _is_doubtful(self, reply: Reply) -> bool:
        """Return whether rounding in the batch could have changed the reply."""
        if not self._exact or self._one_at_a_time or reply.lead is None:
            return False
        return reply.lead < CLOSE_LEADS[str(self._loaded.model.dtype).removeprefix("torch.")]

    def _make_reply(self, continuation: Continuation) -> Reply:
        return Reply(self._decode(continuation.ids), continuation.margin, continuation.lead)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()
