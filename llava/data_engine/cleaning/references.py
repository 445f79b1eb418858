"""The benchmarks' questions as cleaning compares with them: words, options, images."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from llava import benchmarks
from llava.data_engine.cleaning.words import normal_words
from llava.errors import LlavaError
from llava.image_reading import find_name_problem, has_image
from llava.schema import Question

logger = logging.getLogger(__name__)

_OPTION = re.compile(r"[A-Z]\. (.+)")
_INSTRUCTION = re.compile(
    r"(?:Answer (?:the|with)|When the provided|Reference OCR|Context:|Please answer yes or no)"
)
_YES_NO = re.compile(r"\s*Please answer yes or no\.?\s*$")
# A wording that differs in one word from so many others is of a pattern, which a new question fits by chance.
_FEWEST_NEIGHBOURS = 4
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")


@dataclass(slots=True)
class Reference:
    """One wording of a benchmark's question. The words are as `normal_words` returns them.

    A wording that the benchmark asks about several images ("How many people are there?"), or has four times
    with another word in one place ("On which side of the car is the dog?"), is a stock phrase (`is_stock`).
    It says nothing about which image it was asked of.
    """

    benchmark: str
    id: str
    question: str
    options: frozenset[str]
    images: set[str] = field(default_factory=set)
    is_stock: bool = False


def read_benchmarks(eval_root: Path) -> dict[str, list[Question]]:
    """Return the questions of every split of every benchmark that is there, by the benchmark's name.

    A split whose files are absent or damaged is logged and left out: cleaning compares with what there is.
    """
    found: dict[str, list[Question]] = {}
    for name in benchmarks.names():
        benchmark = benchmarks.get(name)
        root = eval_root / benchmark.folder
        for split in benchmark.splits if root.is_dir() else []:
            try:
                found.setdefault(name, []).extend(benchmark.read_questions(root, split))
            except (LlavaError, OSError) as error:
                logger.info("%s, split %s: not compared (%s)", name, split, error)
    return found


def list_benchmark_images(eval_root: Path) -> list[tuple[str, Path]]:
    """Return (benchmark, file) of every image that a benchmark's question names and that is there."""
    found: dict[Path, str] = {}
    for name, questions in read_benchmarks(eval_root).items():
        benchmark = benchmarks.get(name)
        folders = {benchmark.evaluation_for(split).images for split in benchmark.splits}
        for folder in (eval_root / benchmark.folder / images for images in folders):
            for item in questions:
                if item.image and find_name_problem(item.image) is None and has_image(folder, item.image):
                    found[folder / item.image] = name
    return [(name, path) for path, name in found.items()]


def split_question(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the question itself and its options; the benchmark's text has lines "A. ...", instructions."""
    lines = text.splitlines()
    options = tuple(match[1] for line in lines if (match := _OPTION.match(line)))
    kept = [line for line in lines if not _OPTION.match(line) and not _INSTRUCTION.match(line)]
    return _YES_NO.sub("", " ".join(kept)).strip(), options


def collect_references(questions: Mapping[str, Iterable[Question]]) -> list[Reference]:
    """Return each wording once a benchmark, with all the images that it is asked about."""
    found: dict[tuple[str, str, frozenset[str]], Reference] = {}
    for name, asked in questions.items():
        for item in asked:
            text, options = split_question(item.text)
            key = (name, normal_words(text), frozenset(map(normal_words, options)))
            reference = found.setdefault(key, Reference(name, str(item.id), key[1], key[2]))
            reference.images.add(image_key(item.image) if item.image else f"question {item.id}")
    references = list(found.values())
    _mark_stock_phrases(references)
    return references


def _mark_stock_phrases(references: Iterable[Reference]) -> None:
    images: dict[tuple[str, str], set[str]] = {}
    for reference in references:
        images.setdefault((reference.benchmark, reference.question), set()).update(reference.images)
    patterns = Counter(pattern for wording in images for pattern in _patterns(*wording))
    for reference in references:
        wording = reference.benchmark, reference.question
        neighbours = sum(patterns[pattern] - 1 for pattern in _patterns(*wording))
        reference.is_stock = len(images[wording]) > 1 or neighbours >= _FEWEST_NEIGHBOURS


def _patterns(benchmark: str, question: str) -> Iterator[int]:
    """Yield what is left of a question without each of its words in turn."""
    words = question.split()
    for place in range(len(words)):
        yield hash((benchmark, *words[:place], "", *words[place + 1 :]))


def find_benchmark_image(known: Mapping[str, str], image: str, coco_id: object = None) -> str | None:
    """Return the benchmark that has an image of this name or COCO id, or None.

    Args:
        known: The benchmark by `image_key`.
        image: The image's path.
        coco_id: Its number in COCO, if it has one.
    """
    keys = [image_key(image)]
    if isinstance(coco_id, int | str) and str(coco_id).isdecimal():
        keys.append(f"coco {int(coco_id)}")
    return next((known[key] for key in keys if key in known), None)


def image_key(path: str) -> str:
    """Return what identifies an image by its name: the COCO id in it (without zeros), else its stem.

    Where many images have one name (ScienceQA's ID/image.png), the folder belongs to it.
    """
    image = PurePosixPath(path)
    if match := _COCO_NAME.fullmatch(image.stem):
        return f"coco {int(match[1])}"
    return image.stem if len(image.stem) > 5 else "/".join(image.with_suffix("").parts[-2:])
