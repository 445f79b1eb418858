"""The sub-command `llava engine clean`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.benchmarks.base import EVAL_ROOT
from llava.data_engine.cleaning.clean import CleaningSettings, clean_round, summarize_cleaning
from llava.data_engine.cleaning.image_hashes import BenchmarkImages
from llava.data_engine.cleaning.inputs import read_asked
from llava.data_engine.cleaning.provider import CHECKS, Provider
from llava.data_engine.cleaning.references import list_benchmark_images, read_benchmarks
from llava.data_engine.generation.commands import add_provider_flags, open_run
from llava.data_engine.loop.round import REQUESTS, read_settings
from llava.errors import SettingsError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_commands(commands: _SubParsersAction) -> None:
    """Add `clean` to the sub-commands of `llava engine`."""
    clean = commands.add_parser(
        "clean", help="a round's responses -> accepted.jsonl, rejected.jsonl, clean.json"
    )
    clean.add_argument("round", type=Path, help="the round's folder, such as rounds/1")
    clean.add_argument(
        "--eval-root",
        type=Path,
        default=EVAL_ROOT,
        help=f"the benchmarks to compare with, as far as they are there (default {EVAL_ROOT})",
    )
    clean.add_argument(
        "--image-root", type=Path, help="the folder that image paths start from: compare the pictures, too"
    )
    clean.add_argument(
        "--unchecked",
        action="store_true",
        help="apply no rule, only read the records: to compare with cleaned ones",
    )
    clean.add_argument(
        "--ask",
        nargs="+",
        choices=CHECKS,
        default=[],
        help="ask a provider: whether each answer is the only right one (consistency), what type each"
        " question is (types), how many answers it guesses without the image (blind)",
    )
    add_provider_flags(clean)
    clean.set_defaults(command=_clean)


def _clean(arguments: Namespace) -> None:
    for package in ("imagehash", "rapidfuzz", "rensa", "scipy", "sklearn"):
        if find_spec(package) is None:
            raise SettingsError(
                f"cleaning needs {package}: pip install 'llava[engine]'", code="missing-package"
            )
    own = read_settings(arguments.round)
    image_check = None
    if arguments.image_root:
        known = list_benchmark_images(arguments.eval_root)
        image_check = BenchmarkImages(known, arguments.image_root).find
    settings = CleaningSettings(
        seed=own.seed,
        round=own.round,
        questions=read_benchmarks(arguments.eval_root),
        image_check=image_check,
        checked=not arguments.unchecked,
    )
    with _asking(arguments, settings) as asking:
        sys.stdout.write(summarize_cleaning(clean_round(arguments.round, asking)) + "\n")


@contextmanager
def _asking(arguments: Namespace, settings: CleaningSettings) -> Iterator[CleaningSettings]:
    """Yield the settings with the checks that a provider makes."""
    if not arguments.ask:
        yield settings
        return
    with open_run(arguments) as run:
        provider = Provider(run=run, images=not arguments.text_only, seed=settings.seed)
        types = sorted({request.type for request in read_asked(arguments.round / REQUESTS).values()})
        yield replace(
            settings,
            answer=provider.read if "consistency" in arguments.ask else None,
            type_check=provider.type_check(types) if "types" in arguments.ask else None,
            guess=provider.guess if "blind" in arguments.ask else None,
        )
