"""All that can be wrong with training data, looked for once before the first step: records, images, lengths.

One process of a run looks; the others wait for it and take what it found. What was looked at before and has
not changed is not looked at again.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.checks.image_files import MISSING, UNREADABLE, check_images, elsewhere, lying, stat_images
from llava.data.checks.lengths import Lengths, Reading, count_lengths
from llava.data.checks.parallel import cores
from llava.data.checks.policy import Outcome, Policy, Problem
from llava.data.dataset import LazySupervisedDataset
from llava.data.index import waiting
from llava.errors import DataError
from llava.files import read_json, write_json

IMAGE_RENAMED = "image had another suffix"

_LOCK, _FOUND = "preflight.lock", "preflight.json"
_STARTED = time.time()


@dataclass(frozen=True, slots=True)
class Settings:
    """What is looked for.

    Attributes:
        policy: What becomes of bad records.
        thorough: Open every image and count every sample's positions; else images must just be there.
        image_positions: Positions that an image takes.
        workers: Processes; 0 for all cores.
    """

    policy: Policy = "error"
    thorough: bool = True
    image_positions: int = 576
    workers: int = 0


@dataclass(frozen=True, slots=True)
class ImagesFound:
    """The outcome of checking the images.

    It holds how many different images are named, problems by record, other names for missing images, and
    examples of files whose suffix is another format's.
    """

    named: int
    problems: list[Problem]
    renamed: dict[str, str]
    lying: list[str]


@dataclass(frozen=True, slots=True)
class Preflight:
    """Data ready to be learned from.

    Attributes:
        dataset: Without what the policy leaves out, mended where it mends, lengths counted.
        problems: What was wrong, and what became of it.
        images: What was found of the images.
    """

    dataset: LazySupervisedDataset
    problems: list[Problem]
    images: ImagesFound


def preflight(dataset: LazySupervisedDataset, settings: Settings) -> Preflight:
    """Look at everything, and leave out or mend what is to be; nothing is refused yet.

    Args:
        dataset: Opened with the policy `skip`, or with `repair` if that is wanted.
        settings: What is looked for.
    """
    folder = dataset.index.folder
    with waiting(folder / _LOCK, f"{dataset.data_path}: another process is checking it"):
        about = asdict(settings) | {"image_folder": str(_root(dataset).resolve())}
        images = _found_by_another(folder, about)
        if images is None:
            images = _look_at_images(dataset, settings)
            write_json(folder / _FOUND, {"about": about, "finished": time.time(), **asdict(images)})
        if settings.thorough and dataset.tokenizer is not None:
            dataset.token_lengths = _lengths(dataset, settings)
    bad = [problem.row for problem in images.problems if problem.outcome != "mended"]
    usable = dataset.subset(np.flatnonzero(~np.isin(dataset.samples.rows, bad)))
    usable.samples.images = images.renamed
    usable.bad_samples = settings.policy
    problems = [
        replace(problem, outcome=_lost(settings)) if problem.outcome != "mended" else problem
        for problem in dataset.problems
    ]
    return Preflight(usable, [*problems, *images.problems], images)


def _look_at_images(dataset: LazySupervisedDataset, settings: Settings) -> ImagesFound:
    root = _root(dataset)
    rows = dataset.samples.rows
    images = dataset.index.images(rows)
    names: pa.StringArray = images.dictionary.cast(pa.string())
    details, lying = _problems_of(dataset.index.folder, root, names, settings)

    found = ImagesFound(len(names), [], {}, lying)
    if settings.policy == "repair":
        others = {name: elsewhere(root, name) for name, (kind, _) in details.items() if kind == MISSING}
        there = {name: other for name, other in others.items() if other is not None}
        broken, _ = _problems_of(dataset.index.folder, root, pa.array(there.values(), pa.string()), settings)
        found.renamed.update({name: other for name, other in there.items() if other not in broken})
    bad = pc.is_in(names, pa.array(details, pa.string())).take(images.indices).fill_null(False)
    for row in rows[bad.to_numpy(zero_copy_only=False)].tolist():
        name = str(dataset.index[row].image)
        kind, detail = details[name]
        outcome = _lost(settings)
        if name in found.renamed:
            kind, detail, outcome = IMAGE_RENAMED, f"is {found.renamed[name]}", "mended"
        found.problems.append(
            Problem(row, kind, f"{dataset.index.where(row)}: {root / name}: {detail}", outcome)
        )
    return found


def _problems_of(
    folder: Path, root: Path, names: pa.StringArray, settings: Settings
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The kind and detail of what is wrong with images, by name; and those whose suffix lies."""
    if not settings.thorough:
        missing = names.filter(pa.array(stat_images(root, names)[:, 0] < 0)).to_pylist()
        return dict.fromkeys(missing, (MISSING, "no such image file")), []
    table = check_images(folder, root, names, workers=settings.workers or cores())
    bad = table.filter(pc.is_valid(table["problem"])).to_pylist()
    details = {each["name"]: (MISSING if each["size"] < 0 else UNREADABLE, each["problem"]) for each in bad}
    return details, lying(table)


def _lengths(dataset: LazySupervisedDataset, settings: Settings) -> Lengths:
    reading = Reading(
        dataset.tokenizer, dataset.template, settings.image_positions, dataset.data_args.mm_use_im_start_end
    )
    workers = settings.workers or cores()
    return count_lengths(dataset.index.folder, dataset.samples, reading, workers=workers)


def _lost(settings: Settings) -> Outcome:
    return "refused" if settings.policy == "error" else "left out"


def _root(dataset: LazySupervisedDataset) -> Path:
    return Path(dataset.data_args.image_folder or ".")


def _found_by_another(folder: Path, about: dict[str, Any]) -> ImagesFound | None:
    """What another process of the same run found since this one began."""
    if "RANK" not in os.environ:
        return None
    try:
        noted = read_json(folder / _FOUND)
    except DataError:
        return None
    if noted.pop("finished") < _STARTED or noted.pop("about", None) != about:
        return None
    return ImagesFound(**noted | {"problems": [Problem(**each) for each in noted["problems"]]})
