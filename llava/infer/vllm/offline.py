"""Ask vLLM in this process: its class `LLM`, with the model that `llava export` wrote."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from llava.errors import SettingsError, one_line
from llava.files import read_json
from llava.infer.vllm.answerer import Generated, GreedySampling, VllmPrompt
from llava.schema import JsonObject


class OfflineVllm:
    """A model in vLLM; `close` frees its memory."""

    def __init__(self, folder: Path, *, dtype: str, context_length: int, settings: JsonObject) -> None:
        """Load an exported model.

        Args:
            folder: What `llava export` wrote.
            dtype: The precision to compute in.
            context_length: The most positions of a prompt and its answer.
            settings: Keyword arguments of `vllm.LLM`, such as `tensor_parallel_size`.

        Raises:
            SettingsError: vLLM is not installed, or does not start.
        """
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
        try:
            from vllm import LLM
        except ImportError as error:
            raise SettingsError(
                f"--backend vllm needs vLLM ({one_line(error)}): pip install 'llava[vllm]', or give the URL "
                "of a server",
                code="missing-package",
            ) from error
        self.image_token = int(read_json(folder / "config.json")["image_token_index"])
        own = {
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": 1},
            "max_model_len": context_length,
        }
        try:
            self._llm = LLM(str(folder), dtype=dtype, **(own | dict(settings)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"vLLM does not start, its log says why: {one_line(error, 300)}", code="vllm-start"
            ) from error

    def generate(
        self, batches: Iterable[list[list[VllmPrompt]]], sampling: GreedySampling
    ) -> Iterator[tuple[VllmPrompt, Generated]]:
        """Yield each prompt with what was said to it, batch by batch."""
        from vllm import SamplingParams

        params = SamplingParams(**asdict(sampling))
        for batch in batches:
            prompts = [prompt for group in batch for prompt in group]
            outputs = self._llm.generate([_as_vllm(prompt) for prompt in prompts], params, use_tqdm=False)
            for prompt, output in zip(prompts, outputs, strict=True):
                said = output.outputs[0]
                steps = [[token.logprob for token in step.values()] for step in said.logprobs]
                yield prompt, Generated(said.token_ids, steps)

    def close(self) -> None:
        """End vLLM, so that the engine has its memory."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()


def _as_vllm(prompt: VllmPrompt) -> dict[str, object]:
    asked: dict[str, object] = {"prompt_token_ids": list(prompt.ids)}
    if prompt.pictures:
        asked["multi_modal_data"] = {"image": [picture.image for picture in prompt.pictures]}
        asked["multi_modal_uuids"] = {"image": [picture.key for picture in prompt.pictures]}
    return asked
