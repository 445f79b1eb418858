"""COMMAND: chat on a terminal; an empty line or the end of input ends the chat.

    python -m llava.serve.cli --model-path liuhaotian/llava-v1.5-7b --image-file view.jpg

A line that is one of these is a command:

    /image FILE   show another image (a path or http address) with the next question; earlier ones stay
    /reset        forget what was said, and begin again with the last image

Ctrl-C stops an answer; what was said until then stays. While no answer is being written, it ends the chat.

Source: LLaVA v1.2.2 llava/serve/cli.py. Unlike there, answers go into the history without `<s>` and `</s>`,
as in the training prompts.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from llava.command import run
from llava.compat.images import load_image as load_image
from llava.errors import LlavaError, SettingsError, one_line
from llava.infer.engine.requests import Generation, ImageSource
from llava.infer.fetch import resolve_image
from llava.infer.jobs.flags import (
    add_model_flags,
    add_sampling_flags,
    generation_settings,
    model_choice,
    parse_or_complete,
)
from llava.infer.jobs.prompting import require_template

if TYPE_CHECKING:
    from llava.serve.dialogue import Talker, TalkTurn


def chat(flags: argparse.Namespace) -> None:
    """Load the model and answer each line of input, until a line is empty."""
    choice = model_choice(flags)
    sampling = generation_settings(flags, max_new_tokens=flags.max_new_tokens, beams=False)
    if flags.conv_mode is not None:
        require_template(flags.conv_mode)
    image = None if flags.image_file is None else resolve_image(flags.image_file)
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # input() then edits lines and recalls earlier ones

    from llava.infer.engine.load import load  # imports torch, which bad flags need not wait for
    from llava.serve.dialogue import Talker

    talker = Talker(load(choice), choice, flags.conv_mode)
    roles = ("user", "assistant") if "mpt" in choice.name.lower() else talker.roles
    session = _Session(talker, sampling, image, f"{roles[1]}: ", is_debugging=flags.debug)
    while line := _read_line(f"{roles[0]}: "):
        try:
            session.take(line)
        except LlavaError as error:
            if not sys.stdin.isatty():  # nobody is there to try again
                raise
            sys.stdout.write(f"error: {one_line(error)}\n")
    sys.stdout.write("exit...\n")


class _Session:
    """What was said, and the images that go with the next question."""

    def __init__(
        self,
        talker: Talker,
        sampling: Generation,
        image: ImageSource | None,
        opening: str,
        *,
        is_debugging: bool,
    ) -> None:
        self._talker, self._sampling = talker, sampling
        self._opening, self._is_debugging = opening, is_debugging
        self._talk: list[TalkTurn] = []
        self._image = image
        self._is_image_new = image is not None

    def take(self, line: str) -> None:
        """Answer a question, or obey a command.

        Raises:
            LlavaError: There is no such command, an image cannot be used, or the conversation is too long.
        """
        command, _, rest = line.strip().partition(" ")
        if command == "/image":
            self._image, self._is_image_new = resolve_image(rest.strip(" '\"")), True
        elif command == "/reset":
            self._talk, self._is_image_new = [], self._image is not None
        elif re.fullmatch("/[a-z]+", command):
            raise SettingsError(
                f"{command}: no such command; there are /image FILE and /reset", code="unknown-command"
            )
        else:
            self._answer(line)

    def _answer(self, question: str) -> None:
        from llava.serve.dialogue import TalkTurn

        images = (self._image,) if self._image is not None and self._is_image_new else ()
        self._talk.append(TalkTurn(question, images))
        sys.stdout.write(self._opening)
        try:
            with closing(self._talker.answer(self._talk, self._sampling)) as pieces:
                for piece in pieces:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" [stopped]")
        except LlavaError:
            self._talk.pop()
            raise
        finally:
            sys.stdout.write("\n")
        self._is_image_new = False
        if self._is_debugging:
            prompt = self._talker.request(self._talk).prompt
            sys.stdout.write(f"\n{ {'prompt': prompt, 'outputs': self._talk[-1].answer} }\n\n")


def _read_line(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        return ""


def main(args: argparse.Namespace | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    parser.add_argument("--image-file", help="the first image: path or http address")
    parser.add_argument("--conv-mode", help="template (default: what the model was trained with)")
    add_sampling_flags(parser, beams=False)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument(
        "--debug", action="store_true", help="show each prompt and answer as sent and received"
    )
    chat(parse_or_complete(parser, args))


if __name__ == "__main__":
    run(main)
