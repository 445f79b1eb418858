"""One prompt at a time through transformers' own `generate`: sampling, beam search, streaming."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation


@torch.inference_mode()
def generate(
    loaded: Loaded, prompt: torch.Tensor, generation: Generation, *, streamer: Any = None
) -> list[int]:
    """The new token ids after `prompt`, (L, D) embeddings.

    A `streamer` of transformers is given each token as it comes. Sampling starts from `generation.seed` every
    time, so one prompt has one answer whatever was asked before it.
    """
    if generation.temperature > 0:
        torch.manual_seed(generation.seed)
    # The model's own generate would encode the images again.
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
    """`generation` in transformers' words, every field stated that the checkpoint could otherwise fill in."""
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
    """The ids that end an answer, as the checkpoint says, else the tokenizer's."""
    stated = loaded.model.generation_config.eos_token_id
    if stated is None:
        stated = loaded.tokenizer.eos_token_id
    return frozenset(stated if isinstance(stated, list) else [stated])
