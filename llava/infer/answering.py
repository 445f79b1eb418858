"""Ask a model from Python: load it once, give it pairs of image and question, get texts.

Example, with the demo's model in a checkout:

    >>> import llava
    >>> model = llava.load("playground/demo/model")
    >>> model.answer([(None, "Say hello.")], max_new_tokens=1) == model.answer(
    ...     [(None, "Say hello.")], max_new_tokens=1
    ... )
    True
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from llava.errors import DataError
from llava.image_reading import to_rgb
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import Loaded
from llava.infer.engine.load import load as load_choice
from llava.infer.engine.requests import Generation, ImageFile, ImageSource, ImageText, ModelChoice, Request
from llava.infer.jobs.names import get_model_name_from_path
from llava.infer.jobs.prompting import image_line, prompt_of, require_template, template_for_chat

AskedImage = str | Path | Image.Image | None


class AnsweringModel:
    """A loaded model that answers questions about images, in batches where that is faster."""

    def __init__(self, loaded: Loaded, choice: ModelChoice) -> None:
        self._loaded = loaded
        self._choice = choice

    def answer(
        self,
        pairs: Iterable[tuple[AskedImage, str]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        conv_mode: str | None = None,
    ) -> list[str]:
        """Answer each question, in the order of `pairs`.

        Greedy answers are those of one question at a time, however many are asked. Pairs of one image file
        share its encoding.

        Args:
            pairs: (image, question). An image is a file, a PIL image, or None for a question without one.
            max_new_tokens: The most tokens of an answer.
            temperature: Above 0, answers are sampled.
            seed: The seed of sampling, the same for each question.
            conv_mode: The conversation template; None for the one that the model was trained with.

        Raises:
            DataError: An image cannot be read, or a question is empty; the message names the pair.
            SettingsError: There is no template `conv_mode`.
        """
        generation = Generation(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
        engine = Engine(self._loaded, generation)
        if conv_mode is None:
            conv_mode = template_for_chat(None, engine.config, self._choice)
        template, line = require_template(conv_mode), image_line(engine.config)
        requests = []
        for index, (image, question) in enumerate(pairs):
            if not question.strip():
                raise DataError(f"pair {index}: the question is empty", code="empty-question")
            images = () if image is None else (_source(image),)
            prompt = prompt_of(template, question, line * len(images))
            requests.append(Request(prompt, images, f"pair {index}"))
        texts = {index: reply.text for index, reply in engine.answer(requests)}
        return [texts[index] for index in range(len(requests))]


def load_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    load_8bit: bool = False,
    load_4bit: bool = False,
) -> AnsweringModel:
    """Load a model to ask; `llava.load` is this function.

    Args:
        model_path: A folder or hub id with a full model, an adapter or a projector.
        model_base: The base of an adapter or projector; None uses the one that an adapter names.
        device: `cuda`, `cpu` or `mps`; `auto` takes a GPU if there is one.
        dtype: `float16`, `bfloat16` or `float32`; `auto` takes what suits the device.
        load_8bit: Quantise to 8 bits (bitsandbytes).
        load_4bit: Quantise to 4 bits, likewise.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
        SettingsError: The device does not exist, or arguments contradict each other.
    """
    path = str(model_path)
    choice = ModelChoice(
        path=path,
        base=None if model_base is None else str(model_base),
        name=get_model_name_from_path(path),
        device=device,
        dtype=dtype,
        load_8bit=load_8bit,
        load_4bit=load_4bit,
    )
    return AnsweringModel(load_choice(choice), choice)


def _source(image: str | Path | Image.Image) -> ImageSource:
    if not isinstance(image, Image.Image):
        return ImageFile(Path(image))
    content = io.BytesIO()
    to_rgb(image).save(content, format="PNG")
    return ImageText(base64.b64encode(content.getvalue()).decode())
