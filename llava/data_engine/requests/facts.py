"""Read what is known about images: Visual Genome's regions, COCO's captions and boxes, OCR texts, scenes.

Files are streamed, and what they say about images that are not in the folder is only counted. Real ones are
large: Visual Genome's regions of 108,077 images have 700 MB, COCO's instances 450 MB.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from llava.data_engine.requests.images import ImageNames
from llava.errors import DataError, shown
from llava.files import read_jsonl, stream_json_array, stream_json_lists
from llava.schema import JsonObject

Value = TypeVar("Value")
Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""
_Kinds = type | tuple[type, ...]
_NUMBER = (int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFiles:
    """The files that say what is in images; None where there is none.

    Attributes:
        vg: Visual Genome's region_descriptions.json.
        vg_images: Its image_data.json, for sizes and COCO ids.
        coco_captions: Captions in COCO's format.
        coco_instances: Boxes in COCO's format.
        ocr: Lines of {"image", "texts": [...]}.
        scenes: Lines of {"image", ...}; what else a line has is shown as it is.
    """

    vg: Path | None = None
    vg_images: Path | None = None
    coco_captions: Path | None = None
    coco_instances: Path | None = None
    ocr: Path | None = None
    scenes: Path | None = None


class ImageFacts:
    """What the source files say, by image.

    Attributes:
        unknown: For each file, how many images it describes that are not in the folder.
        blank: How many phrases and captions have no text; they are left out.
    """

    def __init__(self, names: ImageNames) -> None:
        self._names = names
        self.unknown: Counter[Path] = Counter()
        self.blank = 0
        # As JSON text: as Python objects, Visual Genome's regions alone would need 1.5 GB.
        self._regions: dict[str, str] = {}
        self._objects: dict[str, list[tuple[str, Box]]] = {}
        self._captions: dict[str, list[str]] = {}
        self._texts: dict[str, list[str]] = {}
        self._scenes: dict[str, JsonObject] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._coco_ids: dict[str, int] = {}

    def knows(self, name: str) -> bool:
        """Return whether any file says what is in an image."""
        stores: tuple[Mapping[str, object], ...] = (
            *(self._regions, self._objects, self._captions),
            *(self._texts, self._scenes),
        )
        return any(store.get(name) for store in stores)

    def has_texts(self, name: str) -> bool:
        """Return whether OCR read anything in an image."""
        return bool(self._texts.get(name))

    def coco_id(self, name: str) -> int | None:
        """Return the COCO id of one of Visual Genome's images, if it has one."""
        return self._coco_ids.get(name)

    def size(self, name: str) -> tuple[int, int] | None:
        """Return the width and height that the boxes of an image belong to; None if no file says."""
        return self._sizes.get(name)

    def describe(self, name: str, size: tuple[int, int]) -> JsonObject:
        """Return all that is known about an image.

        A box becomes left, top, right and bottom as shares of `size`, the image's width and height in
        pixels. Visual Genome has boxes that leave the image; they end at its border.
        """
        regions = json.loads(self._regions.get(name, "[]"))
        found: JsonObject = {
            "coco_id": self.coco_id(name),
            "captions": self._captions.get(name),
            "regions": [_place(text, box, size) for text, box in regions],
            "objects": [_place(text, box, size) for text, box in self._objects.get(name, ())],
            "texts": self._texts.get(name),
            "scene": self._scenes.get(name),
        }
        return {key: value for key, value in found.items() if value is not None and value != []}

    def read(self, sources: SourceFiles) -> None:
        """Read the files that there are.

        Raises:
            DataError: A file is missing or damaged, or describes an image twice; the message names the row.
        """
        readers: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
            (sources.vg_images, self._read_vg_images),
            (sources.vg, self._read_regions),
            (sources.coco_captions, self._read_captions),
            (sources.coco_instances, self._read_instances),
            (sources.ocr, self._read_texts),
            (sources.scenes, self._read_scenes),
        )
        for path, read in readers:
            if path is not None:
                read(path)

    def _read_regions(self, path: Path) -> None:
        box_fields = ("x", "y", "width", "height")
        fields: dict[str, _Kinds] = {"phrase": str, **dict.fromkeys(box_fields, _NUMBER)}
        # The published file calls an image's number `id`, its documentation `image_id`.
        for where, number, row in _rows_once(stream_json_array(path), path, ("image_id", "id")):
            _require(row, {"regions": list}, where)
            regions = []
            for place, region in enumerate(row["regions"]):
                at = f"{where}.regions[{place}]"
                _require(region, fields, at)
                if region.get("image_id", number) != number:
                    raise DataError(
                        f"{at}: image_id is {shown(region['image_id'])}, the image's is {number}",
                        code="bad-source-row",
                    )
                box = _box([region[key] for key in box_fields], at)
                if phrase := self._text(region["phrase"]):
                    regions.append((phrase, box))
            if name := self._find(path, self._names.by_stem(number, where)):
                self._regions[name] = json.dumps(regions, ensure_ascii=False) if regions else ""

    def _read_vg_images(self, path: Path) -> None:
        fields: dict[str, _Kinds] = {"width": int, "height": int, "coco_id": (int, type(None))}
        for where, number, row in _rows_once(stream_json_array(path), path, ("image_id", "id")):
            _require(row, fields, where)
            if name := self._find(path, self._names.by_stem(number, where)):
                self._sizes[name] = _size(row, where)
                if row["coco_id"] is not None:
                    self._coco_ids[name] = row["coco_id"]

    def _read_captions(self, path: Path) -> None:
        def value(row: JsonObject, where: str) -> str:
            _require(row, {"caption": str}, where)
            return self._text(row["caption"])

        coco = _read_coco(path, value)
        for name, captions in self._coco_images(path, coco):
            self._captions.setdefault(name, []).extend(filter(None, captions))

    def _read_instances(self, path: Path) -> None:
        def value(row: JsonObject, where: str) -> tuple[int, Box, str]:
            _require(row, {"category_id": int, "bbox": list}, where)
            return row["category_id"], _box(row["bbox"], where), where

        coco = _read_coco(path, value)
        for name, boxes in self._coco_images(path, coco):
            for category, box, where in boxes:
                if category not in coco.categories:
                    raise DataError(
                        f"{where}: category_id is {category}, which is none of the file's categories",
                        code="bad-source-row",
                    )
                self._objects.setdefault(name, []).append((coco.categories[category], box))

    def _read_texts(self, path: Path) -> None:
        for name, where, row in self._read_lines(path):
            _require(row, {"texts": list}, where)
            for place, text in enumerate(row["texts"]):
                if not isinstance(text, str):
                    raise DataError(
                        f"{where}: texts[{place}] is {shown(text)}, wanted a text", code="bad-source-row"
                    )
            self._texts[name] = [found for text in row["texts"] if (found := self._text(text))]

    def _read_scenes(self, path: Path) -> None:
        for name, _, row in self._read_lines(path):
            self._scenes[name] = {key: value for key, value in row.items() if key != "image"}

    def _read_lines(self, path: Path) -> Iterator[tuple[str, str, JsonObject]]:
        """Yield the image, the place and the row of each line about an image in the folder."""
        seen: set[str] = set()
        for line, row in read_jsonl(path, strict=True):
            where = f"{path}:{line}"
            _require(row, {"image": str}, where)
            name = self._find(path, self._names.by_file(row["image"], where))
            key = name or row["image"]
            if key in seen:
                raise DataError(f"{where}: image {row['image']!r} is there twice", code="doubled-image")
            seen.add(key)
            if name:
                yield name, where, row

    def _coco_images(self, path: Path, coco: _Coco[Value]) -> Iterator[tuple[str, list[Value]]]:
        """Yield each image in the folder with its annotations, and remember its size."""
        for number, values in coco.values.items():
            where = f"{path}: image {number}"
            image = coco.images.get(number)
            if coco.images:
                name = self._names.by_file(image.file, where) if image else None
            else:
                name = self._names.by_coco_id(number, where)
            if name := self._find(path, name):
                if image and image.size:
                    self._sizes[name] = image.size
                yield name, values

    def _find(self, path: Path, name: str | None) -> str | None:
        self.unknown[path] += name is None
        return name

    def _text(self, text: str) -> str:
        """Return a text on one line, and count it if it is blank."""
        text = " ".join(text.split())
        self.blank += not text
        return text


@dataclass(frozen=True, slots=True)
class _CocoImage:
    file: str
    size: tuple[int, int] | None


@dataclass(slots=True)
class _Coco(Generic[Value]):
    """A file in COCO's format: images and categories by id, and what its annotations say by image id."""

    images: dict[int, _CocoImage] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    values: dict[int, list[Value]] = field(default_factory=lambda: defaultdict(list))


def _read_coco(path: Path, keep: Callable[[JsonObject, str], Value]) -> _Coco[Value]:
    """Read a file in COCO's format; `keep` makes of an annotation what is kept of it."""
    found = _Coco[Value]()
    counts: Counter[str] = Counter()
    for key, value in stream_json_lists(path, ("images", "annotations", "categories")):
        where = f"{path}: {key}[{counts[key]}]"
        counts[key] += 1
        if key == "annotations":
            row = _require(value, {"image_id": int}, where)
            found.values[row["image_id"]].append(keep(row, where))
            continue
        row = _require(value, {"id": int, "file_name" if key == "images" else "name": str}, where)
        known: Mapping[int, object] = found.images if key == "images" else found.categories
        if row["id"] in known:
            raise DataError(f"{where}: id {row['id']} is there twice", code="doubled-image")
        if key == "categories":
            found.categories[row["id"]] = row["name"]
        else:
            size = _size(row, where) if "width" in row else None
            found.images[row["id"]] = _CocoImage(row["file_name"], size)
    if not counts["annotations"]:
        raise DataError(f"{path}: no annotations; wanted a file in COCO's format", code="bad-source-row")
    return found


def _rows_once(
    rows: Iterator[object], path: Path, keys: Sequence[str]
) -> Iterator[tuple[str, int, JsonObject]]:
    """Yield the place, the image's number and the row; a number must not come twice."""
    seen: set[int] = set()
    for index, row in enumerate(rows):
        where = f"{path}: [{index}]"
        key = next((key for key in keys if isinstance(row, dict) and key in row), keys[0])
        number = _require(row, {key: int}, where)[key]
        if number in seen:
            raise DataError(f"{where}: image {number} is there twice", code="doubled-image")
        seen.add(number)
        yield where, number, _require(row, {}, where)


def _require(row: object, fields: Mapping[str, _Kinds], where: str) -> JsonObject:
    """Return an object that has fields of the right types.

    Raises:
        DataError: It is none, or a field is missing or of another type.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {shown(row)}, wanted an object", code="bad-source-row")
    for name, kinds in fields.items():
        value = row.get(name)
        if name not in row or not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            found = shown(value) if name in row else "missing"
            raise DataError(f"{where}: {name} is {found}, wanted {wanted}", code="bad-source-row")
    return row


def _box(values: Sequence[object], where: str) -> Box:
    numbers = [
        value
        for value in values
        if isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value)
    ]
    if len(numbers) == len(values) == 4:
        left, top, width, height = numbers
        if width >= 0 and height >= 0:
            return left, top, width, height
    raise DataError(
        f"{where}: box is {shown(list(values))}; wanted left, top, width and height", code="bad-source-row"
    )


def _size(row: JsonObject, where: str) -> tuple[int, int]:
    _require(row, {"width": int, "height": int}, where)
    if row["width"] < 1 or row["height"] < 1:
        raise DataError(
            f"{where}: width and height are {row['width']} and {row['height']}; wanted 1 or more",
            code="bad-source-row",
        )
    return row["width"], row["height"]


def _place(text: str, box: Sequence[float], size: tuple[int, int]) -> JsonObject:
    left, top, width, height = box
    edges = (left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
    return {"text": text, "box": [round(min(max(edge, 0.0), 1.0), 3) for edge in edges]}
