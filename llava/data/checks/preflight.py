"""Check training data before the first step: records, images and lengths.

One rank checks; the others wait for it and read its results. What has not changed since an earlier check is
not checked again.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.checks.image_files import (
    MISSING,
    UNREADABLE,
    check_images,
    find_other_suffix,
    mislabelled_images,
    stat_images,
)
from llava.data.checks.lengths import EncodingSettings, TokenLengths, count_lengths
from llava.data.checks.parallel import count_cores
from llava.data.checks.policy import RecordProblem, outcome_of_loss
from llava.data.dataset import LazySupervisedDataset
from llava.data.index import hold_lock
from llava.errors import DataError
from llava.files import read_json, write_json
from llava.schema import Policy

IMAGE_RENAMED = "image had another suffix"

_LOCK, _RESULTS = "preflight.lock", "preflight.json"
_STARTED = time.time()


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """What to check.

    Attributes:
        policy: What to do about bad records.
        thorough: Open every image and count every sample's positions; otherwise only require that image
            files exist.
        image_positions: Positions of an image.
        workers: Number of processes; 0 for all cores.
    """

    policy: Policy = "error"
    thorough: bool = True
    image_positions: int = 576
    workers: int = 0


@dataclass(frozen=True, slots=True)
class ImageResults:
    """The results of checking the images.

    Attributes:
        named: Number of distinct images named by the records.
        problems: The problems, one for each record.
        renamed: Missing images that exist with another suffix, with that name.
        mislabelled: Images whose suffix is that of another format.
    """

    named: int
    problems: list[RecordProblem]
    renamed: dict[str, str]
    mislabelled: list[str]


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Checked training data.

    Attributes:
        dataset: The samples that the policy keeps, repaired if it repairs, with their lengths counted.
        problems: All problems and what became of the records.
        images: The results of checking the images.
    """

    dataset: LazySupervisedDataset
    problems: list[RecordProblem]
    images: ImageResults


def preflight(dataset: LazySupervisedDataset, settings: CheckSettings) -> CheckedData:
    """Check everything and apply the policy; refused problems are returned, not raised.

    Args:
        dataset: Opened with the policy `repair` if that is wanted, else with `skip`.
        settings: What to check.
    """
    folder = dataset.index.folder
    with hold_lock(folder / _LOCK, f"{dataset.data_path}: another process is checking it"):
        about = asdict(settings) | {"image_folder": str(dataset.image_folder.resolve())}
        images = _results_of_another_rank(folder, about)
        if images is None:
            images = _check_all_images(dataset, settings)
            results = {"about": about, "finished": time.time(), **asdict(images)}
            write_json(folder / _RESULTS, results, ascii_only=True)
        if settings.thorough and dataset.tokenizer is not None:
            dataset.token_lengths = _count_lengths(dataset, settings)
    bad = [problem.row for problem in images.problems if problem.outcome != "mended"]
    usable = dataset.subset(np.flatnonzero(~np.isin(dataset.samples.rows, bad)))
    usable.samples.images = images.renamed
    usable.bad_samples = settings.policy
    problems = [
        replace(problem, outcome=outcome_of_loss(settings.policy)) if problem.outcome != "mended" else problem
        for problem in dataset.problems
    ]
    return CheckedData(usable, [*problems, *images.problems], images)


def _check_all_images(dataset: LazySupervisedDataset, settings: CheckSettings) -> ImageResults:
    root, rows = dataset.image_folder, dataset.samples.rows
    images = dataset.index.images(rows)
    names: pa.StringArray = images.dictionary.cast(pa.string())
    details, mislabelled = _find_problems(dataset.index.folder, root, names, settings)

    results = ImageResults(len(names), [], {}, mislabelled)
    if settings.policy == "repair":
        missing = [name for name, (kind, _) in details.items() if kind == MISSING]
        others = {name: other for name in missing if (other := find_other_suffix(root, name)) is not None}
        other_names = pa.array(others.values(), pa.string())
        broken, _ = _find_problems(dataset.index.folder, root, other_names, settings)
        results.renamed.update({name: other for name, other in others.items() if other not in broken})
    bad = pc.is_in(names, pa.array(details, pa.string())).take(images.indices).fill_null(False)
    for row in rows[bad.to_numpy(zero_copy_only=False)].tolist():
        name = str(dataset.index[row].image)
        kind, detail = details[name]
        outcome = outcome_of_loss(settings.policy)
        if name in results.renamed:
            kind, detail, outcome = IMAGE_RENAMED, f"is {results.renamed[name]}", "mended"
        message = f"{dataset.index.location(row)}: {root / name}: {detail}"
        results.problems.append(RecordProblem(row, kind, message, outcome))
    return results


def _find_problems(
    folder: Path, root: Path, names: pa.StringArray, settings: CheckSettings
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return the kind and the details of each bad image by name, and the mislabelled images."""
    if not settings.thorough:
        missing = names.filter(pa.array(stat_images(root, names)[:, 0] < 0)).to_pylist()
        return dict.fromkeys(missing, (MISSING, "no such image file")), []
    table = check_images(folder, root, names, workers=settings.workers or count_cores())
    bad = table.filter(pc.is_valid(table["problem"])).to_pylist()
    details = {row["name"]: (MISSING if row["size"] < 0 else UNREADABLE, row["problem"]) for row in bad}
    return details, mislabelled_images(table)


def _count_lengths(dataset: LazySupervisedDataset, settings: CheckSettings) -> TokenLengths:
    encoding = EncodingSettings(
        dataset.tokenizer, dataset.template, settings.image_positions, dataset.data_args.mm_use_im_start_end
    )
    workers = settings.workers or count_cores()
    return count_lengths(dataset.index.folder, dataset.samples, encoding, workers=workers)


def _results_of_another_rank(folder: Path, about: dict[str, object]) -> ImageResults | None:
    """Return what another rank of the same run found since this process began."""
    if "RANK" not in os.environ:
        return None
    try:
        saved = read_json(folder / _RESULTS)
    except DataError:
        return None
    if saved.pop("finished") < _STARTED or saved.pop("about", None) != about:
        return None
    return ImageResults(**saved | {"problems": [RecordProblem(**problem) for problem in saved["problems"]]})
