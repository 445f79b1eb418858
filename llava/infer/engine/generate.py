"""Generate from one prompt with transformers' `generate`: sampling, beam search, streaming."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer

from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation


@torch.inference_mode()
def generate(
    loaded: Loaded, prompt: torch.Tensor, generation: Generation, *, streamer: BaseStreamer | None = None
) -> list[int]:
    """Return the new token ids after `prompt`, (L, D) embeddings.

    Each token is passed to the `streamer` at once. The random generator is seeded with `generation.seed`, so
    that a prompt's answer does not depend on earlier requests.
    """
    if generation.temperature > 0:
        torch.manual_seed(generation.seed)
    # Not LlavaLlamaForCausalLM.generate, which would encode the images again.
    output = GenerationMixin.generate(
        loaded.model,
        inputs_embeds=prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=prompt.device),
        generation_config=build_generation_config(loaded, generation),
        streamer=streamer,
    )
    ids: list[int] = output[0].tolist()
    return ids


def build_generation_config(loaded: Loaded, generation: Generation) -> GenerationConfig:
    """Convert `generation` for transformers, setting every field that the checkpoint could otherwise set."""
    sampled: dict[str, Any] = {}
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
    """Return the ids that end an answer: the checkpoint's if it has some, else the tokenizer's."""
    ids = loaded.model.generation_config.eos_token_id
    if ids is None:
        ids = loaded.tokenizer.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [ids])
