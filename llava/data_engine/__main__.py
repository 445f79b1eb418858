"""The command `llava engine`: steer rounds, convert engine records, mix them into the training data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from llava.command import run
from llava.data_engine.cleaning.commands import add_commands as add_cleaning
from llava.data_engine.convert import ConversionSettings, Group, MissingImages
from llava.data_engine.formats import DEFAULT_MODES, MODES
from llava.data_engine.generation.commands import add_commands as add_generation
from llava.data_engine.loop.commands import add_commands as add_loop
from llava.data_engine.mix import BATCH_SIZE
from llava.data_engine.pipeline import convert_files, mix_files, summarize_report
from llava.errors import SettingsError

ENGINE_HELP = "files of engine records, JSON arrays or .jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava engine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_loop(commands)

    convert = commands.add_parser("convert", help="engine records -> LLaVA samples")
    convert.add_argument("--engine", type=Path, nargs="+", required=True, help=ENGINE_HELP)
    convert.add_argument(
        "--base", type=Path, help="a LLaVA training file whose records come first, unchanged"
    )
    convert.set_defaults(command=_convert)

    mix = commands.add_parser("mix", help="a LLaVA training file + engine records or samples -> one file")
    mix.add_argument("--base", type=Path, required=True, help="a LLaVA training file; its records come first")
    added = mix.add_mutually_exclusive_group(required=True)
    added.add_argument("--engine", type=Path, nargs="+", help=ENGINE_HELP + "; converted on the way")
    added.add_argument("--samples", type=Path, nargs="+", help="LLaVA files, as `convert` writes them")
    mix.set_defaults(command=_mix)

    for command in (convert, mix):
        command.add_argument("--output", type=Path, required=True, help="the JSON array to write")
        _add_conversion(command.add_argument_group("converting engine records"))
    add_generation(commands)
    add_cleaning(commands)
    arguments = parser.parse_args()
    arguments.command(arguments)


def _add_conversion(parser: argparse._ArgumentGroup) -> None:
    add = parser.add_argument
    add(
        "--image-root",
        type=Path,
        help="the folder that image paths start from: look whether the images exist",
    )
    add(
        "--check-images",
        choices=get_args(MissingImages),
        help="an image is missing: skip the record, warn and use it (default), or stop; needs --image-root",
    )
    add("--modes", type=_list, default=DEFAULT_MODES, help=f"of {','.join(MODES)} (default da,mc,mcp)")
    add("--group", choices=get_args(Group), default="none", help="join the questions about one image")
    add("--qtypes", type=_list, help="only these skills: ids 1 to 9 or names, with commas between")
    add("--limit", type=int, help="stop after this many usable records")
    add("--seed", type=int, default=42, help="of the shuffled options (default 42)")
    add("--report", type=Path, help="the report, JSON (default: beside the output, .report.json)")
    add(
        "--problems",
        type=Path,
        help="what was not used and why (default: beside the output, .problems.jsonl)",
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.check_images and not arguments.image_root:
        raise SettingsError(
            "--check-images needs --image-root, the folder that image paths start from", code="missing-flag"
        )
    settings = ConversionSettings(
        engine=tuple(arguments.engine),
        modes=arguments.modes,
        group=arguments.group,
        skills=arguments.qtypes,
        limit=arguments.limit,
        seed=arguments.seed,
        image_root=arguments.image_root,
        missing_images=arguments.check_images or "warn",
    )
    report = convert_files(
        settings,
        arguments.output,
        base=arguments.base,
        report=arguments.report,
        problems=arguments.problems,
    )
    sys.stdout.write(summarize_report(report) + "\n")


def _mix(arguments: argparse.Namespace) -> None:
    if arguments.engine:
        _convert(arguments)
        return
    mixed = mix_files(arguments.base, arguments.samples, arguments.output, image_root=arguments.image_root)
    sys.stdout.write(
        f"samples: {mixed.base:,} of {arguments.base} + {mixed.added:,} new = {mixed.total:,}"
        f" in {arguments.output}\nexpected steps: {mixed.steps:,} at a batch of {BATCH_SIZE}\n"
    )


if __name__ == "__main__":
    run(main)
