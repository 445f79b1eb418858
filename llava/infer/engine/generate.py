"""Generate from one prompt with `generate`: sampling, beam search, streaming, and models of other code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llava.infer.engine.finite import RequireFinite, explain_not_finite
from llava.infer.engine.image_loading import Pixels
from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation

IsStopped = Callable[[], bool]
"""Asked after each token; true ends the answer there."""


@torch.inference_mode()
def generate(
    loaded: Loaded,
    prompt: torch.Tensor,
    generation: Generation,
    *,
    streamer: BaseStreamer | None = None,
    is_stopped: IsStopped | None = None,
) -> list[int]:
    """Return the new token ids after `prompt`, (L, D) embeddings.

    Each token is passed to the `streamer` at once. The random generator is seeded with `generation.seed`, so
    that a prompt's answer does not depend on earlier requests.
    """
    if generation.temperature > 0:
        torch.manual_seed(generation.seed)
    # Not LlavaLlamaForCausalLM.generate, which would encode the images again.
    with explain_not_finite(loaded.model, [prompt]):
        output = GenerationMixin.generate(
            loaded.model,
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=prompt.device),
            generation_config=build_generation_config(loaded, generation),
            logits_processor=LogitsProcessorList([RequireFinite()]),
            streamer=streamer,
            **_stopping(is_stopped),
        )
    ids: list[int] = output[0].tolist()
    return ids


@torch.inference_mode()
def ask_model(
    loaded: Loaded,
    ids: Sequence[int],
    images: Sequence[Pixels],
    generation: Generation,
    streamer: BaseStreamer | None = None,
    is_stopped: IsStopped | None = None,
) -> list[int]:
    """Return the new token ids after a prompt by the model's own `generate`, as the original's commands do.

    Whatever other code has replaced in the model is called.

    Args:
        loaded: The model.
        ids: The prompt's ids, with -200 for an image.
        images: The images of the prompt, in order.
        generation: How tokens are chosen.
        streamer: Gets each token at once.
        is_stopped: Whether to end the answer early.
    """
    model, device = loaded.model, loaded.device
    prompt = torch.tensor([ids], device=device)
    if not hasattr(model, "get_vision_tower"):
        embeds = model.get_input_embeddings()(prompt)[0]
        return generate(loaded, embeds, generation, streamer=streamer, is_stopped=is_stopped)
    if generation.temperature > 0:
        torch.manual_seed(generation.seed)
    tensors = [image.tensor.to(device, model.dtype) for image in images]
    is_regular = len({tensor.shape for tensor in tensors}) == 1
    views = torch.stack(tensors) if is_regular else tensors
    with explain_not_finite(model):
        output = model.generate(
            prompt,
            images=views if images else None,
            image_sizes=[image.size for image in images] or None,
            attention_mask=torch.ones_like(prompt),
            generation_config=build_generation_config(loaded, generation),
            logits_processor=LogitsProcessorList([RequireFinite()]),
            streamer=streamer,
            **_stopping(is_stopped),
        )
    new: list[int] = output[0].tolist()
    return new


def build_generation_config(loaded: Loaded, generation: Generation) -> GenerationConfig:
    """Convert `generation` for transformers, setting every field that the checkpoint could otherwise set."""
    sampled: dict[str, float] = {}
    if generation.temperature > 0:
        sampled = {
            "temperature": generation.temperature,
            "top_p": 1.0 if generation.top_p is None else generation.top_p,
            "top_k": generation.top_k,
        }
    tokenizer = loaded.tokenizer
    return GenerationConfig(
        do_sample=bool(sampled),
        num_beams=generation.num_beams,
        max_new_tokens=generation.max_new_tokens,
        use_cache=True,
        repetition_penalty=1.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(find_stop_ids(loaded)),
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        **sampled,
    )


def find_stop_ids(loaded: Loaded) -> Collection[int]:
    """Return the ids that end an answer."""
    return stop_ids_of(loaded.model.generation_config, loaded.tokenizer)


def stop_ids_of(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> Collection[int]:
    """Return the ids that end an answer: the checkpoint's if it has some, else the tokenizer's."""
    ids = tokenizer.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [ids])


class _StopWhen(StoppingCriteria):
    def __init__(self, is_stopped: IsStopped) -> None:
        self._is_stopped = is_stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self._is_stopped(), dtype=torch.bool, device=input_ids.device)


def _stopping(is_stopped: IsStopped | None) -> dict[str, StoppingCriteriaList]:
    """Return the argument of `generate` that ends an answer; none where nothing can."""
    return {} if is_stopped is None else {"stopping_criteria": StoppingCriteriaList([_StopWhen(is_stopped)])}
