"""Unpack an archive into its folder: all of it or nothing, and nothing outside."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from llava.errors import DataError, SettingsError, one_line
from llava.image_reading import find_name_problem
from llava.log import progress
from llava.temporary import temporary_folder


def unpack_zip(archive: Path, folder: Path, *, only: str = "") -> None:
    """Unpack a zip file so that its content lies in `folder`, which appears at once.

    A first folder that holds all of it is left out: train2017.zip has `train2017/1.jpg`. In a folder that
    exists files of the same name are replaced, and others stay. What macOS adds is left out.

    Args:
        archive: The zip file.
        folder: Where its content belongs.
        only: The only member to unpack; empty for all.

    Raises:
        DataError: It is no zip file, is damaged, or has a member that would leave the folder.
        SettingsError: There is not enough space.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                member
                for member in opened.infolist()
                if not member.is_dir()
                and not member.filename.startswith("__MACOSX/")
                and only in ("", PurePosixPath(member.filename).name)
            ]
            _check_members(archive, members)
            folder.parent.mkdir(parents=True, exist_ok=True)
            require_free(folder.parent, sum(member.file_size for member in members), str(archive))
            _unpack(opened, members, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({one_line(error, 200)})", code="damaged-archive"
        ) from error


def require_free(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of `folder` has `needed` bytes for `what`.

    Raises:
        SettingsError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SettingsError(
            f"{what} needs {format_bytes(needed)}, and {folder} has {format_bytes(free)} free; make space, "
            "or name another --root",
            code="disk-full",
        )


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, such as "19.3 GB" (1 GB is 10^9 bytes)."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise DataError(f"{archive}: holds nothing that is wanted", code="damaged-archive")
    for member in members:
        if find_name_problem(member.filename):
            raise DataError(
                f"{archive}: has a member {member.filename!r}, which would leave its folder; nothing was "
                "unpacked. This is not the published file",
                code="unsafe-archive",
            )


def _unpack(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    paths = [PurePosixPath(member.filename).parts for member in members]
    is_wrapped = len({parts[0] for parts in paths}) == 1 and min(map(len, paths)) > 1
    with temporary_folder(folder, within=folder.parent) as staging:
        whole = staging / "whole"
        whole.mkdir()
        for member, parts in progress(zip(members, paths, strict=True), name=folder.name, total=len(members)):
            member.filename = "/".join(parts[is_wrapped:])
            opened.extract(member, whole)
        move_files(whole, folder)


def move_files(source: Path, folder: Path) -> None:
    """Make the files in `source` those of `folder`, on the same disk; one that exists keeps its others."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "sync"):  # not on Windows; a crash must not leave empty files in a complete folder
        os.sync()
    if not folder.exists():
        source.replace(folder)
        return
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
