"""Talk with a model: several turns about images, each answer as it is written. `chat` and `web` share this.

Importing this module imports torch.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from transformers import TextIteratorStreamer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.infer.engine.engine import Engine
from llava.infer.engine.generate import IsStopped
from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation, ImageSource, ModelChoice, Request
from llava.infer.jobs.prompting import image_line, template_for_chat


@dataclass(slots=True)
class TalkTurn:
    """A question, its new images, and the model's answer, or as much of it as there is.

    Attributes:
        question: What the user said.
        images: The images that come with it. Those of earlier turns stay in the talk.
        answer: What the model said; empty before its first word.
        generation: How the answer was generated.
    """

    question: str
    images: tuple[ImageSource, ...] = ()
    answer: str = ""
    generation: Generation | None = None


class Talker:
    """A model to talk with. It holds no talk: a talk is a list of turns, which the caller keeps.

    Attributes:
        name: The model's name.
        roles: The names of the user and the model in the template.
    """

    def __init__(self, loaded: Loaded, choice: ModelChoice, conv_mode: str | None = None) -> None:
        """Prepare to talk with `loaded`.

        Args:
            loaded: The model.
            choice: Where it was loaded from.
            conv_mode: The template; None for the one that fits the model best.

        Raises:
            SettingsError: There is no template `conv_mode`.
        """
        self._loaded = loaded
        config = loaded.model.config
        self._template = conv_templates[template_for_chat(conv_mode, config, choice)]
        self._image_line = image_line(config)
        self.name = choice.name
        self.roles = self._template.roles

    def request(self, talk: Sequence[TalkTurn]) -> Request:
        """Return what the model is asked at the end of a talk.

        A question that has no answer is left out, unless it is the last one; its images go with the next.
        `<image>` in a text stands for no image, and is removed, as the original's web page does.
        """
        conversation = self._template.copy()
        images: list[ImageSource] = []
        lines = ""
        for turn in talk:
            images += turn.images
            lines += self._image_line * len(turn.images)
            is_last = turn is talk[-1]
            if is_last or turn.answer:
                conversation.append_message(conversation.roles[0], lines + _plain(turn.question))
                conversation.append_message(conversation.roles[1], None if is_last else _plain(turn.answer))
                lines = ""
        return Request(conversation.get_prompt(), tuple(images), name="the conversation")

    def answer(
        self, talk: Sequence[TalkTurn], generation: Generation, is_stopped: IsStopped = lambda: False
    ) -> Generator[str, None, None]:
        """Answer the last question of a talk, yielding the new text each time that there is some.

        The turn's `answer` grows with it, so that what was said before a stop stays. Closing the iterator
        stops the model, too.

        Args:
            talk: At least one turn. An answer that its last one already has is replaced.
            generation: How tokens are chosen.
            is_stopped: Asked after each token; true ends the answer there.

        Raises:
            DataError: An image is broken, or the conversation does not fit into the model's context.
            CheckpointError: The model's logits are NaN or infinite.
        """
        turn, request = talk[-1], self.request(talk)
        turn.answer, turn.generation = "", generation
        streamer = TextIteratorStreamer(self._loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        is_closed = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(
                Engine(self._loaded, generation).reply_streaming,
                request,
                streamer,
                lambda: is_closed.is_set() or is_stopped(),
            )
            reply.add_done_callback(lambda _: streamer.end())  # also where it failed
            try:
                for text in streamer:
                    if text:
                        turn.answer += text
                        yield text
            finally:
                is_closed.set()
                turn.answer = turn.answer.strip()
            turn.answer = reply.result().text


def _plain(text: str) -> str:
    return text.replace(DEFAULT_IMAGE_TOKEN, "")
