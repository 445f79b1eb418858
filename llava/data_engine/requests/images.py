"""Find the images of a folder by path, file name or id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from llava.data_engine.cleaning.references import image_key
from llava.errors import DataError
from llava.image_reading import list_image_files


class ImageNames:
    """The images of a folder, found by path, file name, or id.

    Attributes:
        by_path: Their names by their paths in the folder. A name is the path under the image root, with "/".
        all: The names, sorted.
    """

    def __init__(self, paths: Iterable[str], start: str = "") -> None:
        self.by_path = {path: (PurePosixPath(start) / path).as_posix() for path in paths}
        self.all = sorted(self.by_path.values())
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self.all:
            path = PurePosixPath(name)
            for key in {name, path.name, f"id {path.stem}", f"key {image_key(name)}"}:
                self._by_key[key].append(name)

    def by_file(self, file: str, where: str) -> str | None:
        """Return the image of a path under the root or of a file name; None if it is not there."""
        return self._one(file, where)

    def by_stem(self, number: int, where: str) -> str | None:
        """Return the image whose file is named by a number, as Visual Genome's 17.jpg."""
        return self._one(f"id {number}", where)

    def by_coco_id(self, number: int, where: str) -> str | None:
        """Return the image whose file has a COCO id, as 000000000017.jpg."""
        return self._one(f"key coco {number}", where)

    def _one(self, key: str, where: str) -> str | None:
        found = self._by_key.get(key, [])
        if len(found) > 1:
            raise DataError(
                f"{where}: stands for two images, {found[0]} and {found[1]}; rename one, or give a folder"
                " that has one of them",
                code="doubled-image",
            )
        return found[0] if found else None


def find_images(folder: Path, root: Path) -> ImageNames:
    """Return the image files in a folder and its sub-folders.

    Args:
        folder: The folder.
        root: The folder that paths in requests and records start from; `folder` lies in it.

    Raises:
        DataError: The folder is missing, holds no image, or does not lie in the root.
    """
    paths = list_image_files(folder)
    try:
        start = folder.resolve().relative_to(root.resolve())
    except ValueError as error:
        raise DataError(
            f"{folder}: does not lie in the image root {root}; paths of images start there",
            code="outside-image-root",
        ) from error
    return ImageNames(paths, start.as_posix())
