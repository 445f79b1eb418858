"""What `eval_speed.py` compares the engine with: one question at a time, plain batches, vLLM.

All get the same weights, token ids and square pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from llava.constants import IMAGE_TOKEN_INDEX
from llava.exchange.hf_folder import export_hf
from llava.image_reading import read_image
from llava.images import process_images
from llava.infer.engine.generate import find_stop_ids
from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.vllm.answerer import VllmAnswerer
from llava.infer.vllm.front import Front
from llava.infer.vllm.offline import OfflineVllm
from llava.prompts.encode import tokenizer_image_token

_PAD, _IMAGE = 0, 31999  # ids that no prompt has


@torch.inference_mode()
def ask_one_at_a_time(loaded: Loaded, requests: Sequence[Request], tokens: int, keep: int) -> list[str]:
    """Answer as the original's loop does: encode the question's image, process the whole prompt, generate."""
    said = []
    for request in requests:
        ids = torch.tensor([tokenizer_image_token(request.prompt, loaded.tokenizer)], device=loaded.device)
        pixels, size = _read_pixels(loaded, request)
        output = loaded.model.generate(
            ids,
            images=pixels[None],
            image_sizes=[size],
            generation_config=_settings(loaded, tokens),
            logits_to_keep=keep,
        )
        said.append(_decode(loaded, output[0].tolist()))
    return said


class PlainBatches:
    """transformers' own LLaVA with the weights of ours, asked in batches sorted by length, left padded."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, ours = loaded, loaded.model
        tower = ours.get_vision_tower().vision_tower
        fields = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version"}
        text = {name: value for name, value in ours.config.to_dict().items() if name in fields}
        config = LlavaConfig(
            vision_config=tower.config.to_dict(), text_config=LlamaConfig(**text), image_token_index=_IMAGE
        )
        with loaded.device:
            self._model = LlavaForConditionalGeneration(config).to(ours.dtype).eval()
        projector = ours.get_model().mm_projector.state_dict()
        names = {"0": "linear_1", "2": "linear_2"}
        parts = (
            (self._model.lm_head, ours.lm_head.state_dict()),
            (self._model.model.language_model, ours.get_model().state_dict()),
            (self._model.model.vision_tower, tower.state_dict()),
            (
                self._model.model.multi_modal_projector,
                {f"{names[key[0]]}{key[1:]}": value for key, value in projector.items()},
            ),
        )
        for part, weights in parts:
            wanted = part.state_dict().keys()
            found = {key: weights.get(key, weights.get(f"vision_model.{key}")) for key in wanted}
            part.load_state_dict(found, assign=True)

    @torch.inference_mode()
    def ask(self, requests: Sequence[Request], tokens: int, size: int) -> list[str]:
        """Answer in batches of this size."""
        prompts = [tokenizer_image_token(request.prompt, self._loaded.tokenizer) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: len(prompts[index]))
        said = [""] * len(requests)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            ids = [torch.tensor(self._expand(prompts[index])) for index in batch]
            padded = pad_sequence(ids, batch_first=True, padding_value=_PAD, padding_side="left")
            mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True, padding_side="left")
            output = self._model.generate(
                padded.to(self._loaded.device),
                attention_mask=mask.to(self._loaded.device),
                pixel_values=torch.stack([_read_pixels(self._loaded, requests[index])[0] for index in batch]),
                generation_config=_settings(self._loaded, tokens),
            )
            for index, row in zip(batch, output[:, padded.shape[1] :].tolist(), strict=True):
                said[index] = _decode(self._loaded, row)
        return said

    def _expand(self, ids: Sequence[int]) -> list[int]:
        patches = self._loaded.model.get_vision_tower().num_patches
        return [
            new for token in ids for new in ([_IMAGE] * patches if token == IMAGE_TOKEN_INDEX else [token])
        ]


class Vllm:
    """vLLM in this process, with an exported copy of the weights, a prefix cache and our ids and pictures."""

    def __init__(self, loaded: Loaded, folder: Path) -> None:
        self._loaded = loaded
        self._dtype = str(loaded.model.dtype).removeprefix("torch.")
        saved, exported = folder / "llava-saved", folder / "exported"
        loaded.model.save_pretrained(saved)
        loaded.tokenizer.save_pretrained(saved)
        export_hf(str(saved), None, exported, dtype=self._dtype)
        self._vllm = OfflineVllm(
            exported,
            dtype=self._dtype,
            context_length=loaded.context_length,
            settings={"enforce_eager": loaded.device.type == "cpu"},
        )

    def ask(self, requests: Sequence[Request], tokens: int) -> list[str]:
        """Answer without asking close calls again, and without what earlier calls left in caches."""
        llm = self._vllm._llm
        llm.reset_prefix_cache()
        llm.reset_mm_cache()
        llm.llm_engine.reset_encoder_cache()
        loaded = self._loaded
        assert loaded.image_processor is not None
        assert loaded.patches is not None
        front = Front(
            loaded.tokenizer,
            loaded.image_processor,
            loaded.model.config,
            loaded.patches,
            find_stop_ids(loaded),
            loaded.context_length,
        )
        generation = Generation(max_new_tokens=tokens)
        answerer = VllmAnswerer(front, self._vllm, generation, dtype=self._dtype, exact=False)
        found = dict(answerer.answer(requests))
        return [found[index].text for index in range(len(requests))]


def find_vllm_obstacle(loaded: Loaded) -> str | None:
    """Return why vLLM is not asked, or None."""
    if find_spec("vllm") is None:
        return "not installed"
    if not isinstance(loaded.tokenizer, PreTrainedTokenizerBase):
        return "needs LLAVA_TEST_DATA: its tokenizer"
    return None


def _read_pixels(loaded: Loaded, request: Request) -> tuple[torch.Tensor, tuple[int, int]]:
    (source,) = request.images
    assert isinstance(source, ImageFile)
    picture = read_image(source.path)
    pixels = process_images([picture], loaded.image_processor, loaded.model.config)[0]
    return pixels.to(loaded.device, loaded.model.dtype), picture.size


def _settings(loaded: Loaded, tokens: int) -> GenerationConfig:
    stops = sorted(find_stop_ids(loaded))
    return GenerationConfig(
        do_sample=False, max_new_tokens=tokens, use_cache=True, pad_token_id=_PAD, eos_token_id=stops
    )


def _decode(loaded: Loaded, ids: Sequence[int]) -> str:
    stops = find_stop_ids(loaded)
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text: str = loaded.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
    return text.strip()
