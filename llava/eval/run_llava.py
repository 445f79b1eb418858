"""Command: ask one question about one or several images and print the answer.

    python -m llava.eval.run_llava --model-path liuhaotian/llava-v1.5-7b --image-file view.jpg \
        --query "What are the things I should be cautious about?"

`<image-placeholder>` in the query marks the place of an image; without it, images go first.
Source of the rules: LLaVA v1.2.2 llava/eval/run_llava.py.
"""

from __future__ import annotations

import argparse
import sys

from llava.command import run
from llava.compat.images import image_parser
from llava.compat.images import load_image as load_image
from llava.compat.images import load_images as load_images
from llava.constants import IMAGE_PLACEHOLDER
from llava.errors import DataError
from llava.infer.engine.requests import Request
from llava.infer.fetch import resolve_image
from llava.infer.jobs.flags import (
    add_model_flags,
    add_sampling_flags,
    generation_settings,
    model_choice,
    parse_or_complete,
)
from llava.infer.jobs.prompting import image_line, image_token, prompt_of, require_template, template_for_chat


def __getattr__(name: str) -> object:
    if name == "process_images":  # needs torch, which bad flags need not wait for
        from llava.images import process_images

        return process_images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def eval_model(args: object) -> None:
    """Answer `args.query` about `args.image_file` and print the answer.

    Args:
        args: Any object with the flags as attributes (`model_path`, `image_file`, `query`, ...), or a list of
            flags. A missing attribute has the flag's default.
    """
    flags = parse_or_complete(_parser(), args)
    choice = model_choice(flags)
    settings = generation_settings(flags, max_new_tokens=flags.max_new_tokens)
    if flags.conv_mode is not None:
        require_template(flags.conv_mode)
    images = tuple(resolve_image(name) for name in image_parser(flags))
    if not flags.query.strip():
        raise DataError("--query is empty", code="empty-question")

    from llava.infer.engine.engine import Engine  # torch, only once the flags are known to be good
    from llava.infer.engine.load import load

    engine = Engine(load(choice), settings)
    conversation = template_for_chat(flags.conv_mode, engine.config, choice)
    query, opening = flags.query, ""
    if IMAGE_PLACEHOLDER in query:
        query = query.replace(IMAGE_PLACEHOLDER, image_token(engine.config))
    else:
        opening = image_line(engine.config) * len(images)
    request = Request(prompt_of(conversation, query, opening), images, name=flags.image_file)
    _, reply = next(engine.answer([request]))
    sys.stdout.write(f"{reply.text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    parser.add_argument("--image-file", required=True, help="path or URL; several are joined by --sep")
    parser.add_argument("--query", required=True)
    parser.add_argument("--conv-mode", help="template (default: what the model was trained with)")
    parser.add_argument("--sep", default=",")
    add_sampling_flags(parser)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    return parser


def main() -> None:
    eval_model(None)


if __name__ == "__main__":
    run(main)
