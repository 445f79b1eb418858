"""COMMAND: a web page to talk with a model, or with two side by side.

    llava web --model-path liuhaotian/llava-v1.5-7b

The page is for this machine alone unless --host says otherwise. Nothing is sent to anyone else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import run
from llava.errors import DataError, SettingsError, one_line, shown
from llava.files import read_jsonl
from llava.image_reading import image_path, require_image_file
from llava.infer.jobs.flags import add_model_flags, model_choice
from llava.infer.jobs.prompting import require_template

if TYPE_CHECKING:
    from llava.infer.engine.requests import ModelChoice
    from llava.serve.page import Page

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
EXAMPLES = Path(__file__).parent / "examples" / "questions.jsonl"


def main() -> None:
    flags = make_parser().parse_args()
    choices = _choices(flags)
    _require_ranges(flags)
    if flags.conv_mode is not None:
        require_template(flags.conv_mode)
    examples = load_examples(flags.examples)
    page_class = _import_page()  # brings torch, which bad flags need not wait for

    from llava.infer.engine.load import load
    from llava.infer.engine.requests import Generation
    from llava.serve.dialogue import Talker
    from llava.serve.votes import VoteLog

    with tempfile.TemporaryDirectory(prefix="llava-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads, and all else that the page serves
        page = page_class(
            talkers=[Talker(load(choice), choice, flags.conv_mode) for choice in choices],
            folder=Path(folder),
            initial=Generation(0.2, 0.7, max_new_tokens=min(512, flags.max_new_tokens)),  # the original's
            longest=flags.max_new_tokens,
            votes=VoteLog(flags.votes) if len(choices) == 2 else None,
            examples=examples,
        )
        if flags.host not in LOOPBACK:
            logger.warning(f"--host {flags.host}: everyone who reaches this machine can use the page")
        with open_page(page, flags) as address:
            sys.stdout.write(f"{address} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            threading.Event().wait()


@contextmanager
def open_page(page: Page, flags: argparse.Namespace) -> Iterator[str]:
    """Serve a page during a block, and yield its address.

    Requests for another host's name are refused on the loopback: a site on the web could otherwise make its
    own name mean this machine (DNS rebinding).

    Raises:
        SettingsError: The port is taken, or there is no such host.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from llava.serve.page import LOOKS

    hosts = list(LOOPBACK) if flags.host in LOOPBACK else ["*"]
    blocks = page.build(flags.concurrency).queue(max_size=flags.queue)
    try:
        _, address, _ = blocks.launch(
            server_name=flags.host,
            server_port=flags.port,
            max_file_size=f"{flags.max_upload_mb}mb",
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            **LOOKS,
        )
    except OSError as error:
        raise SettingsError(
            f"--host {flags.host} --port {flags.port or 'not given'}: {one_line(error)}", code="bad-port"
        ) from error
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def load_examples(path: Path) -> list[tuple[Path, str]]:
    """Return (image, question) of each line of a question file; images are named from its folder.

    Raises:
        DataError: A line has no question, or its image does not exist.
    """
    examples = []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: text is {shown(text)}, wanted a question", code="empty-question")
        image = image_path(path.parent, row.get("image"), where)
        require_image_file(image)
        examples.append((image, text))
    return examples


def _import_page() -> type[Page]:
    try:
        from llava.serve.page import Page
    except ImportError as error:
        raise SettingsError(
            f"the page needs {error.name}: pip install 'llava[serve]'", code="missing-package"
        ) from error
    return Page


def _choices(flags: argparse.Namespace) -> list[ModelChoice]:
    paths = flags.model_path
    if len(paths) > 2:
        raise SettingsError(f"--model-path is given {len(paths)} times; at most 2", code="too-many-models")
    return [model_choice(argparse.Namespace(**vars(flags) | {"model_path": path})) for path in paths]


def _require_ranges(flags: argparse.Namespace) -> None:
    for name in ("port", "concurrency", "queue", "max_upload_mb", "max_new_tokens"):
        value = getattr(flags, name)
        if value is not None and not 1 <= value <= (65535 if name == "port" else value):
            raise SettingsError(f"--{name.replace('_', '-')} {value} is out of range", code="out-of-range")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser, several=True)
    add = parser.add_argument
    add("--conv-mode", help="template (default: what each model was trained with)")
    add("--max-new-tokens", type=int, default=1024, help="the longest answer that can be chosen (1024)")
    add(
        "--examples",
        type=Path,
        default=EXAMPLES,
        help='examples to try: lines {"image": FILE, "text": QUESTION}, images named from the file\'s folder',
    )
    add("--votes", type=Path, default=Path("votes"), help="folder of the votes on two models (votes)")
    add("--host", default=LOOPBACK[0], help="0.0.0.0: for everyone who reaches this machine (127.0.0.1)")
    add("--port", type=int, help="default: the first free one from 7860")
    add("--concurrency", type=int, default=1, help="answers that are written at the same time (1)")
    add("--queue", type=int, default=20, help="questions that may wait; more are refused (20)")
    add("--max-upload-mb", type=int, default=10, help="the largest image file, in MB (10)")
    return parser


if __name__ == "__main__":
    run(main)
