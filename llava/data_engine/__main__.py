"""The command `llava engine`: steer rounds, convert engine records, mix them into the training data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from llava.command import run
from llava.data_engine.cleaning.commands import add_commands as add_cleaning
from llava.data_engine.convert import ConversionSettings, Group, MissingImages
from llava.data_engine.formats import DEFAULT_MODES, MODES
from llava.data_engine.generation.commands import add_commands as add_generation
from llava.data_engine.lineage.commands import add_commands as add_lineage
from llava.data_engine.lineage.training import accepted_of, keep_lineage
from llava.data_engine.loop.commands import add_commands as add_loop
from llava.data_engine.mix import BATCH_SIZE, Replay
from llava.data_engine.pipeline import convert_files, mix_files, summarize_report
from llava.data_engine.prompting.commands import add_commands as add_prompting
from llava.data_engine.requests.commands import add_commands as add_requests
from llava.data_engine.results.commands import add_commands as add_results
from llava.errors import SettingsError
from llava.schema import JsonObject

ENGINE_HELP = "files of engine records, JSON arrays or .jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="llava engine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_loop(commands)
    add_requests(commands)

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
    added.add_argument(
        "--round", type=Path, help="the accepted records of this round and of the earlier ones of its arm"
    )
    added.add_argument("--samples", type=Path, nargs="+", help="LLaVA files, as `convert` writes them")
    mix.add_argument("--incremental", action="store_true", help="with --round: only this round's records")
    mix.add_argument(
        "--replay",
        type=float,
        metavar="RATIO",
        help="base records for each new sample, drawn by --seed (default: all; 1 with --incremental)",
    )
    mix.add_argument("--replay-by-type", action="store_true", help="each type of the base keeps its share")
    mix.set_defaults(command=_mix)

    for command in (convert, mix):
        command.add_argument("--output", type=Path, required=True, help="the JSON array to write")
        _add_conversion(command.add_argument_group("converting engine records"))
    add_generation(commands)
    add_cleaning(commands)
    add_lineage(commands)
    add_results(commands)
    add_prompting(commands)
    arguments = parser.parse_args()
    arguments.command(arguments)


def _add_conversion(group: argparse._ArgumentGroup) -> None:
    """Add the flags of `convert` and `mix` that say which engine records are converted, and how."""
    add = group.add_argument
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
    add(
        "--modes",
        type=_list,
        default=DEFAULT_MODES,
        help=f"of {','.join(MODES)} (default da,mc,mcp); mc=0.5 asks half of the records so",
    )
    add("--group", choices=get_args(Group), default="none", help="join the questions about one image")
    add("--qtypes", type=_list, help="only these skills: ids 1 to 9 or names, with commas between")
    add("--limit", type=int, help="stop after this many usable records")
    add("--sample", type=int, help="draw this many records; each type keeps its share")
    add("--seed", type=int, default=42, help="of shuffled options and of what is drawn (default 42)")
    add("--report", type=Path, help="the report, JSON (default: beside the output, .report.json)")
    add(
        "--problems",
        type=Path,
        help="what was not used and why (default: beside the output, .problems.jsonl)",
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _parse_modes(entries: Sequence[str]) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the modes and the shares of those with one, as in da,mc=0.5."""
    shares = {}
    for entry in entries:
        mode, equals, text = entry.partition("=")
        if equals:
            try:
                shares[mode] = float(text)
            except ValueError as error:
                raise SettingsError(
                    f"--modes {entry!r}: wanted a share, as in mc=0.5", code="not-a-number"
                ) from error
    return tuple(entry.partition("=")[0] for entry in entries), shares


def _convert(arguments: argparse.Namespace) -> JsonObject:
    if arguments.check_images and not arguments.image_root:
        raise SettingsError(
            "--check-images needs --image-root, the folder that image paths start from", code="missing-flag"
        )
    modes, shares = _parse_modes(arguments.modes)
    settings = ConversionSettings(
        engine=tuple(arguments.engine),
        modes=modes,
        shares=shares,
        group=arguments.group,
        skills=arguments.qtypes,
        limit=arguments.limit,
        sample=arguments.sample,
        seed=arguments.seed,
        image_root=arguments.image_root,
        missing_images=arguments.check_images or "warn",
    )
    report = convert_files(
        settings,
        arguments.output,
        base=arguments.base,
        replay=_replay(arguments),
        report=arguments.report,
        problems=arguments.problems,
    )
    sys.stdout.write(summarize_report(report) + "\n")
    return report


def _replay(arguments: argparse.Namespace) -> Replay | None:
    """Return how much of the base is mixed in, None for all of it."""
    ratio = getattr(arguments, "replay", None)
    if ratio is None and getattr(arguments, "incremental", False):
        ratio = 1.0
    return None if ratio is None else Replay(ratio, arguments.replay_by_type, arguments.seed)


def _mix(arguments: argparse.Namespace) -> None:
    if arguments.incremental and not arguments.round:
        raise SettingsError("--incremental needs --round", code="missing-flag")
    if arguments.round:
        arguments.engine = accepted_of(arguments.round, incremental=arguments.incremental)
        keep_lineage(arguments.round, _convert(arguments), incremental=arguments.incremental)
        return
    if arguments.engine:
        _convert(arguments)
        return
    mixed = mix_files(
        arguments.base,
        arguments.samples,
        arguments.output,
        replay=_replay(arguments),
        image_root=arguments.image_root,
    )
    sys.stdout.write(
        f"samples: {mixed.base:,} of {arguments.base} + {mixed.added:,} new = {mixed.total:,}"
        f" in {arguments.output}\nexpected steps: {mixed.steps:,} at a batch of {BATCH_SIZE}\n"
    )


if __name__ == "__main__":
    run(main)
