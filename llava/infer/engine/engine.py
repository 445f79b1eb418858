"""Answer a list of requests, encoding each image once and reading each shared prefix once.

See the package's docstring for the terms. Shapes: L positions, D width, P patches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PretrainedConfig
from transformers.generation.streamers import BaseStreamer

from llava.errors import LlavaError
from llava.infer.digests import FileContent
from llava.infer.engine.budget import measure_budget, try_alone
from llava.infer.engine.generate import IsStopped, ask_model, find_stop_ids, generate
from llava.infer.engine.greedy import Continuation, continue_prompt
from llava.infer.engine.image_loading import Pixels, load_pixels, read_ahead
from llava.infer.engine.load import Loaded
from llava.infer.engine.packed import PromptGroup, continue_groups
from llava.infer.engine.prompt_ids import PromptEncoder, count_shared
from llava.infer.engine.requests import Generation, ImageSource, Reply, Request
from llava.infer.engine.rounding import CloseCalls
from llava.infer.engine.schedule import Group, Window, plan_windows
from llava.model.in_memory import try_in_memory
from llava.model.onednn.layers import packed_weights
from llava.model.overrides import find_change
from llava.model.splice import splice

logger = logging.getLogger(__name__)

# Implementations of attention that compute what `attention` does with slots.
_USUAL_ATTENTION = ("sdpa", "packed")

# From how many requests on packing the weights saves more time than it takes: about that of reading a prefix.
_WORTH_PACKING = 8

Features = dict[ImageSource, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A request that is read: its token ids, with -200 for an image, and its images."""

    ids: Sequence[int]
    images: Sequence[Pixels]

    @property
    def contents(self) -> tuple[FileContent, ...]:
        """What its image files held."""
        return tuple(image.content for image in self.images if image.content)


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
        self._encoder = PromptEncoder(loaded.tokenizer, loaded.patches, loaded.context_length)
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
        self._encoder.check(requests)
        windows = plan_windows(requests, self._budget.groups)
        opened: dict[int, _Opened] = {}  # the requests in progress
        read = read_ahead(windows, requests, self._load_pixels, self._encoder.encode)
        replies: Iterator[tuple[int, Reply]] = (
            (index, replace(reply, images=opened[index].contents))
            for index, reply in self._answer_windows(read, requests, opened)
        )
        if self._exact and not self._one_at_a_time:
            replies = self._ask_close_calls_again(replies, requests, opened)
        is_many = len(requests) >= _WORTH_PACKING
        with packed_weights(self._loaded.model) if is_many else nullcontext():
            for index, reply in replies:
                opened.pop(index, None)
                yield index, reply

    def reply_streaming(
        self, request: Request, streamer: BaseStreamer, is_stopped: IsStopped | None = None
    ) -> Reply:
        """Answer one request, passing each token to `streamer` at once, until `is_stopped` says so.

        Raises:
            DataError, CheckpointError: As for `answer`.
            SettingsError: Memory ran out.
        """
        opened = self._open(request)
        if self._notice_changes():
            return try_alone(partial(self._ask_model, opened, streamer, is_stopped), may_repeat=False)
        features = self._encode_images(dict(zip(request.images, opened.images, strict=True)))
        prompt = self._embed(request, opened.ids, features)
        writing = partial(
            generate, self._loaded, prompt, self._generation, streamer=streamer, is_stopped=is_stopped
        )
        return Reply(self._decode(try_alone(writing, may_repeat=False)))

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

    def _ask_close_calls_again(
        self, replies: Iterable[tuple[int, Reply]], requests: Sequence[Request], opened: dict[int, _Opened]
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the replies, with those computed again on their own that rounding could have changed."""
        calls = CloseCalls(str(self._loaded.model.dtype).removeprefix("torch."), len(requests))
        waiting: list[tuple[int, Reply]] = []  # for what is measured until the end
        failure: LlavaError | None = None
        try:
            for index, reply in replies:
                verdict = "certain" if reply.lead is None else calls.judge(reply.lead)
                if verdict == "open":
                    del opened[index]  # many images would fill the memory
                    waiting.append((index, reply))
                    continue
                if verdict == "close":
                    reply = self._answer_again(requests[index], opened[index], reply, calls)
                yield index, reply
        except LlavaError as error:
            failure = error
        for index, reply in waiting:
            if reply.lead is not None and reply.lead < calls.limit:
                reply = self._answer_again(requests[index], self._open(requests[index]), reply, calls)
            yield index, reply
        if self.asked_again:
            logger.info(
                f"{self.asked_again} of {len(requests)} answers were close calls or the first, computed "
                f"again on their own; {calls.describe()}"
            )
        if failure:
            raise failure

    def _answer_windows(
        self,
        windows: Iterable[tuple[Window, dict[ImageSource, Pixels], dict[int, list[int]]]],
        requests: Sequence[Request],
        opened: dict[int, _Opened],
    ) -> Iterator[tuple[int, Reply]]:
        """Yield (index in `requests`, reply) for all requests of the windows.

        Each request is put into `opened`, by its index, before its reply comes.
        """
        is_changed = self._notice_changes()
        groups = self._open_groups(windows, opened, encode=not is_changed)
        if not is_changed and not self._one_at_a_time:
            for index, continuation in continue_groups(
                self._loaded.model,
                (self._embed_group(group, requests, opened, features) for group, features in groups),
                self._budget,
                max_new_tokens=self._generation.max_new_tokens,
                stop_ids=self._stop_ids,
            ):
                yield index, self._make_reply(continuation)
            return
        for group, features in groups:
            for index in group.requests:
                if is_changed:
                    yield index, try_alone(partial(self._ask_model, opened[index]))
                else:
                    yield index, self._answer_one(self._embed(requests[index], opened[index].ids, features))

    def _open_groups(
        self,
        windows: Iterable[tuple[Window, dict[ImageSource, Pixels], dict[int, list[int]]]],
        opened: dict[int, _Opened],
        *,
        encode: bool,
    ) -> Iterator[tuple[Group, Features]]:
        """Yield the groups of the windows with the features of their images, if these are to be encoded."""
        features: Features = {}
        for window, images, ids in windows:
            if encode:
                new = {source: image for source, image in images.items() if source not in features}
                features |= self._encode_images(new)
            for group in window.groups:
                shown = [images[source] for source in group.images]
                opened |= {index: _Opened(ids[index], shown) for index in group.requests}
                yield group, features
            for source in window.last:
                features.pop(source, None)

    def _open(self, request: Request) -> _Opened:
        return _Opened(self._encoder.encode(request), [self._load_pixels(image) for image in request.images])

    def _embed_group(
        self, group: Group, requests: Sequence[Request], opened: Mapping[int, _Opened], features: Features
    ) -> PromptGroup:
        """Embed the prefix of a group."""
        prompts = [opened[index].ids for index in group.requests]
        shared = count_shared(prompts)
        prefix = self._embed(requests[group.requests[0]], prompts[0][:shared], features)
        rests = tuple(tuple(ids[shared:]) for ids in prompts)
        for index, rest in zip(group.requests, rests, strict=True):
            self._encoder.require_room(requests[index], len(prefix) + len(rest))
        return PromptGroup(prefix, group.requests, rests)

    def _ask_model(
        self,
        opened: _Opened,
        streamer: BaseStreamer | None = None,
        is_stopped: IsStopped | None = None,
    ) -> Reply:
        """Answer a request by the model's own `generate`."""
        new = ask_model(self._loaded, opened.ids, opened.images, self._generation, streamer, is_stopped)
        return Reply(self._decode(new))

    def _load_pixels(self, source: ImageSource) -> Pixels:
        return load_pixels(source, self._loaded.image_processor, self.config)

    @torch.inference_mode()
    def _encode_images(self, images: Mapping[ImageSource, Pixels]) -> Features:
        """Encode each image to a (P, D) block; images without tiles are encoded in batches."""
        model, device = self._loaded.model, self._loaded.device
        features: Features = {}
        plain = [source for source, image in images.items() if image.tensor.ndim == 3]
        while plain:
            # Batches of equal size: a last one of a few images costs nearly as much as a full one.
            batches = math.ceil(len(plain) / self._budget.images)
            batch = plain[: math.ceil(len(plain) / batches)]
            stacked = torch.stack([images[source].tensor for source in batch])
            encoded = try_in_memory(partial(model.encode_views, stacked.to(device, model.dtype)))
            if encoded is None:
                self._budget.halve()
                continue
            features |= zip(batch, encoded, strict=True)
            del plain[: len(batch)]
        for source, image in images.items():
            if image.tensor.ndim != 3:
                features[source] = self._encode_tiles(image)
        return features

    def _encode_tiles(self, image: Pixels) -> torch.Tensor:
        """Encode an image of several views to one (P, D) block, with fewer at a time if memory runs out."""
        model = self._loaded.model
        views = image.tensor.to(self._loaded.device, model.dtype)
        at_a_time = len(views)
        while True:
            encoded = try_in_memory(partial(model.encode_views, [views], [image.size], at_a_time))
            if encoded is not None:
                block: torch.Tensor = encoded[0]
                return block
            self._budget.halve()
            at_a_time = max(at_a_time // 2, 1)

    @torch.inference_mode()
    def _embed(self, request: Request, ids: Sequence[int], features: Features) -> torch.Tensor:
        """Embed a prompt, or a part of it with all its images, as (L, D)."""
        words = self._loaded.model.get_input_embeddings()
        blocks = [features[source] for source in request.images] or [words.weight[:0]]
        spliced = splice(torch.tensor([ids], device=self._loaded.device), None, None, words, blocks)
        self._encoder.require_room(request, len(spliced.embeds[0]))
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

    def _answer_again(self, request: Request, opened: _Opened, reply: Reply, calls: CloseCalls) -> Reply:
        """Answer a request with no other prompt or image in the batch; `reply` is its answer in one."""
        self.asked_again += 1
        features: Features = {}
        for source, image in zip(request.images, opened.images, strict=True):
            features |= self._encode_images({source: image})
        alone = self._answer_one(self._embed(request, opened.ids, features))
        assert alone.lead is not None
        assert reply.lead is not None
        lead_in_batch = reply.lead if alone.text == reply.text else -reply.lead
        calls.measure(alone.lead, lead_in_batch)
        return replace(alone, images=reply.images, lead_in_batch=lead_in_batch)

    def _make_reply(self, continuation: Continuation) -> Reply:
        return Reply(self._decode(continuation.ids), continuation.margin, continuation.lead)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()
