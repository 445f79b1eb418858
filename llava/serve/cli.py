"""COMMAND: chat about one image; an empty line or the end of input ends the chat.

    python -m llava.serve.cli --model-path liuhaotian/llava-v1.5-7b --image-file view.jpg

Source: LLaVA v1.2.2 llava/serve/cli.py. Unlike there, answers go into the history without `<s>` and `</s>`,
as in the training prompts.
"""

from __future__ import annotations

import argparse
import sys

from llava.command import run
from llava.compat.images import load_image as load_image
from llava.conversation import conv_templates
from llava.infer.engine.requests import Request
from llava.infer.fetch import resolve_image
from llava.infer.jobs.flags import (
    add_model_flags,
    add_sampling_flags,
    generation_settings,
    model_choice,
    parse_or_complete,
)
from llava.infer.jobs.prompting import image_line, require_template, template_for_chat


def chat(flags: argparse.Namespace) -> None:
    """Load the model and answer each line of input about the image, until a line is empty."""
    choice = model_choice(flags)
    sampling = generation_settings(flags, max_new_tokens=flags.max_new_tokens, beams=False)
    if flags.conv_mode is not None:
        require_template(flags.conv_mode)
    image = resolve_image(flags.image_file)

    from transformers import TextStreamer

    from llava.infer.engine.engine import Engine  # imports torch, which bad flags need not wait for
    from llava.infer.engine.load import load

    loaded = load(choice)
    engine = Engine(loaded, sampling)
    conversation = conv_templates[template_for_chat(flags.conv_mode, engine.config, choice)].copy()
    roles = ("user", "assistant") if "mpt" in choice.name.lower() else conversation.roles
    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    opening = image_line(engine.config)
    while line := _read_line(f"{roles[0]}: "):
        sys.stdout.write(f"{roles[1]}: ")
        conversation.append_message(conversation.roles[0], opening + line)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        reply = engine.reply_streaming(Request(prompt, (image,), name=flags.image_file), streamer)
        conversation.messages = [*conversation.messages[:-1], [conversation.roles[1], reply.text]]
        opening = ""
        if flags.debug:
            sys.stdout.write(f"\n{ {'prompt': prompt, 'outputs': reply.text} }\n\n")
    sys.stdout.write("exit...\n")


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
    parser.add_argument("--image-file", required=True, help="path or http address")
    parser.add_argument("--conv-mode", help="template (default: what the model was trained with)")
    add_sampling_flags(parser, beams=False)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument(
        "--debug", action="store_true", help="show each prompt and answer as sent and received"
    )
    chat(parse_or_complete(parser, args))


if __name__ == "__main__":
    run(main)
