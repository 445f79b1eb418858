"""The data check before the first step: a report on screen and as JSON, and the policy applied."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from llava.conversation import Conversation
from llava.data.check import lines, report
from llava.data.checks.policy import Policy, refuse
from llava.data.checks.preflight import Settings, preflight
from llava.data.dataset import LazySupervisedDataset
from llava.errors import DataError, SettingsError
from llava.files import write_json
from llava.train.arguments import DataArguments, TrainingArguments

logger = logging.getLogger(__name__)

REPORT = "data_check.json"


def open_checked(
    path: str,
    tokenizer: Any,
    template: Conversation,
    data_args: DataArguments,
    training_args: TrainingArguments,
    image_positions: int,
) -> LazySupervisedDataset:
    """A file's samples as `--bad_samples` leaves them, looked at as far as `--check_data` says.

    Raises:
        SettingsError: There are images, and the flags do not say how to see them.
        DataError: A record or an image is not as it must be, and that is an error; or nothing is left.
    """
    # Bad records are not refused yet, but reported together with bad images.
    opened_with: Policy = "repair" if data_args.bad_samples == "repair" else "skip"
    dataset = LazySupervisedDataset(path, tokenizer, data_args, template=template, bad_samples=opened_with)
    _require_sight(dataset, data_args)
    settings = Settings(
        cast(Policy, data_args.bad_samples), thorough=data_args.check_data, image_positions=image_positions
    )
    found = preflight(dataset, settings)
    made = report(found, max_length=training_args.model_max_length)
    if training_args.should_save:
        write_json(dataset.index.folder / REPORT, made, ascii_only=True)
    for line in lines(made):
        logger.info(line)
    logger.info("all of it is in %s", dataset.index.folder / REPORT)
    command = f"python -m llava.data.check {dataset.data_path} --image-folder {data_args.image_folder}"
    refuse(found.problems, f"; `{command}` lists all, --bad_samples skip or repair goes on without them")
    if not len(found.dataset):
        raise DataError(f"{dataset.data_path}: no sample is left; see {dataset.index.folder / REPORT}")
    if training_args.should_save and found.problems:
        copy = Path(str(training_args.output_dir)) / f"data_check_{dataset.data_path.stem}.json"
        write_json(copy, made, ascii_only=True)
    return found.dataset


def _require_sight(dataset: LazySupervisedDataset, data_args: DataArguments) -> None:
    rows = dataset.samples.rows
    shown = rows[dataset.index.with_image[rows]]
    if not len(shown):
        return
    first = dataset.index.identifier(shown[0])
    if not data_args.is_multimodal:
        raise SettingsError(f"{dataset.data_path}: sample {first!r} has an image: --vision_tower is missing")
    if data_args.image_folder is None:
        raise SettingsError(f"{dataset.data_path}: sample {first!r} has an image: --image_folder is missing")
