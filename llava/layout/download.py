"""The command `llava download`: get training data and benchmarks, each into its folder.

    llava download mix665k coco          # or train, eval, all
    llava download --list

What is there already is left alone; what was cut goes on. LLAVA_MIRRORS="FROM=TO ..." names mirrors of
addresses, HF_ENDPOINT one of the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import run
from llava.errors import DataError
from llava.files import write_json
from llava.layout.catalog import COUNTS, WORK, DataSet, Remote, select, unpacked_counts
from llava.layout.fetching import fetch_remote, remote_size
from llava.layout.folders import DATA_ROOT
from llava.layout.unpacking import format_bytes, move_files, require_free, unpack_zip

logger = logging.getLogger("llava.layout.download")


def main() -> None:
    """Parse the command line; list the data sets, or get those named.

    Raises:
        DataError: A data set that must be asked for was named.
    """
    parser = argparse.ArgumentParser(
        prog="llava download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; train, eval and all are several")
    parser.add_argument("--root", type=Path, default=DATA_ROOT, help=f"the data folder (default {DATA_ROOT})")
    parser.add_argument("--list", action="store_true", help="say what there is, and what of it is here")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and its size")
    parser.add_argument("--keep-archives", action="store_true", help="do not delete archives once unpacked")
    flags = parser.parse_args()
    if not flags.names and not flags.list:
        parser.error("name what to get, or give --list")
    chosen = select(flags.names or ["all"])
    if flags.list:
        _list(chosen, flags.root)
        return
    wanted = [remote for data in chosen if not data.page for remote in data.lacking(flags.root)]
    _announce(chosen, wanted, flags.root)
    if not flags.dry_run:
        download(wanted, flags.root, keep_archives=flags.keep_archives)
    by_hand = [data for data in chosen if data.page and data.name in flags.names and data.lacking(flags.root)]
    if by_hand:
        pages = "; ".join(f"{data.name}: {data.page}" for data in by_hand)
        raise DataError(f"to get by hand, or to ask for, at the page: {pages}", code="not-downloadable")


def _list(chosen: Sequence[DataSet], root: Path) -> None:
    for data in chosen:
        by_hand = "; by hand, at the page" if data.page else ""
        sys.stdout.write(f"{data.name} ({data.kind}{by_hand})\n")
        for remote in data.remotes:
            sys.stdout.write(f"    {remote.describe(root)}, from {remote.url}\n")


def _announce(chosen: Sequence[DataSet], wanted: Sequence[Remote], root: Path) -> None:
    """Say what will be fetched, how large it is, and what the disk has.

    Raises:
        SettingsError: The disk has too little space for what is known of it.
    """
    for data in chosen:
        if not data.lacking(root):
            sys.stdout.write(f"{data.name}: complete\n")
        elif data.page:
            sys.stdout.write(f"{data.name}: left out; to get by hand, or to ask for, at {data.page}\n")
    missing = {remote.url: remote for remote in wanted if not remote.is_unpacked(root)}.values()
    if not missing:
        return
    sizes = [remote_size(remote) for remote in missing]
    for remote, size in zip(missing, sizes, strict=True):
        text = "size unknown" if size is None else format_bytes(size)
        sys.stdout.write(f"{root / remote.into} from {remote.url}: {text}\n")
    known = [size for size in sizes if size is not None]
    # An archive of images is about as large as they are, and is deleted before the next one comes.
    needed = sum(known) + max(known, default=0)
    unknown = f" and {len(sizes) - len(known)} of unknown size" if len(known) < len(sizes) else ""
    place = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    sys.stdout.write(
        f"{format_bytes(sum(known))}{unknown} to fetch; {format_bytes(needed)}{unknown and ' or more'} of "
        f"disk until all is unpacked, of {format_bytes(free)} free\n"
    )
    sys.stdout.flush()
    require_free(place, needed, "this download")


def download(wanted: Sequence[Remote], root: Path, *, keep_archives: bool = False) -> None:
    """Get files and archives one after the other; a second process waits until the first is done.

    Raises:
        DataError: A file cannot be fetched, or is damaged. Those before it are complete.
    """
    from filelock import FileLock, Timeout

    if not wanted:
        return
    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"{root}: another download is running; waiting for it")
        lock.acquire()
    try:
        for remote in wanted:
            if not remote.is_there(root):
                _get(remote, root, keep_archives=keep_archives)
    finally:
        lock.release()


def _get(remote: Remote, root: Path, *, keep_archives: bool) -> None:
    place, work = root / remote.into, root / WORK
    if not remote.is_unpacked(root):
        path = fetch_remote(remote, work)
        if path.is_dir():
            shutil.rmtree(path / ".cache", ignore_errors=True)
            move_files(path, place)
        elif remote.is_folder:
            _unpack_checked(remote, path, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        if not keep_archives:
            _tidy(work, path)
        if remote.is_folder:
            _record(remote, root)
        sys.stdout.write(f"{place}: complete\n")
        sys.stdout.flush()
    link = root / remote.link
    if remote.link and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # a link to what is gone
        link.symlink_to(os.path.relpath(place, link.parent), target_is_directory=True)
        sys.stdout.write(f"{link}: linked to {place}\n")


def _record(remote: Remote, root: Path) -> None:
    """Note how many files an archive's folder has now, so that one that loses some counts as incomplete."""
    count = sum(1 for _ in (root / remote.into).glob(remote.proof))
    if not count:
        raise DataError(
            f"{remote.url}: unpacked to {root / remote.into}, where there is no {remote.proof}: the source "
            "has changed",
            code="unexpected-archive",
        )
    write_json(root / WORK / COUNTS, unpacked_counts(root) | {remote.url: count})


def _unpack_checked(remote: Remote, archive: Path, place: Path) -> None:
    """Unpack an archive; a damaged one is removed, so that the next run fetches it again."""
    try:
        unpack_zip(archive, place, only=remote.only)
    except DataError as error:
        archive.unlink()
        raise DataError(f"{remote.url}: {error}; it was removed", code=error.code) from error


def _tidy(work: Path, path: Path) -> None:
    """Remove what fetching `path` left in the folder `work`."""
    own = work / path.relative_to(work).parts[0]
    for leftover in (own, own.with_name(own.name + ".version")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
