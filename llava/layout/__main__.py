"""The command `llava layout`: check that the training data is in place, make OCR-VQA's images `.jpg`.

`check` counts the images of every folder; with `--data FILE` it looks for every image that a training file
names, and only that decides. `ocrvqa DIR` makes OCR-VQA's GIF, PNG and other files the `.jpg` files that the
training files name.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from llava.command import run
from llava.errors import DataError, SettingsError
from llava.files import require_distinct, write_json
from llava.layout.folders import DATA_ROOT, FOLDERS, check_named, count_images
from llava.layout.ocr_vqa import Options, convert_folder

EXAMPLES_SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="llava layout", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="count the images, look for those that a training file names")
    check.add_argument("--root", type=Path, default=DATA_ROOT, help=f"the data folder (default {DATA_ROOT})")
    check.add_argument("--data", type=Path, nargs="+", default=[], help="training files to look up")
    check.add_argument(
        "--missing", type=Path, help="write the names of all missing images to this file, JSON"
    )
    check.set_defaults(command=_check)
    convert = commands.add_parser(
        "ocrvqa", help="make every image of OCR-VQA a .jpg; goes on where it stopped"
    )
    convert.add_argument("folder", type=Path, help="ocr_vqa/images")
    convert.add_argument("--verify", action="store_true", help="decode also what is JPEG already")
    convert.add_argument(
        "--remove-originals", action="store_true", help="delete each file whose .jpg is made"
    )
    convert.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all cores)"
    )
    convert.add_argument("--report", type=Path, help="counts and unreadable files (default: DIR.report.json)")
    convert.set_defaults(command=_convert)
    flags = parser.parse_args()
    flags.command(flags)


def _check(flags: argparse.Namespace) -> None:
    if not flags.root.is_dir():
        raise DataError(
            f"{flags.root}: no such folder; playground/data/README.md says what belongs there",
            code="missing-folder",
        )
    if flags.missing and not flags.data:
        raise SettingsError(
            "--missing lists the images that --data names: give --data as well", code="missing-flag"
        )
    require_distinct((flags.missing,), flags.data)
    wrong = _check_folders(flags.root)
    if flags.data:
        wrong = _check_files(flags.root, flags.data, flags.missing)
    if wrong:
        raise DataError(f"{flags.root}: {'; '.join(wrong)}", code="incomplete-data")


def _check_folders(root: Path) -> list[str]:
    wrong = []
    sys.stdout.write(f"{'folder':<22}{'.jpg':>9}{'expected':>10}  state\n")
    for folder in FOLDERS:
        found = count_images(root, folder)
        expected = f"{'' if folder.exact else '~'}{folder.images:,}"
        notes: list[str] = [found.state]
        if found.state != "complete":
            notes.append(f"from {folder.source}")
        if found.other:
            notes.append(f"{found.other:,} files of another format")
            if folder.path.startswith("ocr_vqa"):
                notes.append(f"run: python -m llava.layout ocrvqa {root / folder.path}")
        sys.stdout.write(f"{folder.path:<22}{found.jpg:>9,}{expected:>10}  {'; '.join(notes)}\n")
        if found.state == "missing" or (found.state == "short" and folder.exact):
            wrong.append(f"{folder.path} is {found.state}")
    return wrong


def _check_files(root: Path, files: list[Path], list_file: Path | None) -> list[str]:
    wrong, missing = [], {}
    for path in files:
        named = check_named(root, path)
        missing[str(path)] = named.missing
        counts = f"{named.records:,} records name {named.images:,} images, {len(named.missing):,} missing"
        sys.stdout.write(f"{path}: {counts}\n")
        sys.stdout.writelines(f"  {image}\n" for image in named.missing[:EXAMPLES_SHOWN])
        if named.missing:
            wrong.append(f"{len(named.missing):,} images of {path} are missing, {named.missing[0]} first")
    if list_file:
        write_json(list_file, missing)
    return wrong


def _convert(flags: argparse.Namespace) -> None:
    options = Options(verify=flags.verify, remove_originals=flags.remove_originals)
    outcome = convert_folder(flags.folder, options, workers=max(1, flags.workers))
    report = flags.report or flags.folder.with_name(flags.folder.name + ".report.json")
    write_json(report, asdict(outcome), ascii_only=True)  # names of files need not be UTF-8
    total, ways = sum(outcome.ways.values()), outcome.ways
    sys.stdout.write(
        f"{total:,} images: {ways['kept']:,} were .jpg, {ways['copied']:,} copied, {ways['converted']:,}"
        f" converted, {ways['failed']:,} failed; {len(outcome.ignored):,} other files left alone ({report})\n"
    )
    if ways["failed"]:
        first = next(iter(outcome.unreadable))
        raise DataError(
            f"{flags.folder}: {ways['failed']:,} images cannot be read ({first} first), see {report}",
            code="unreadable-image",
        )


if __name__ == "__main__":
    run(main)
