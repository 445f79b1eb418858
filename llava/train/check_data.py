"""Check the data before the first step: log and write a report, then apply the policy for bad samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation
from llava.data.checks.policy import raise_refused
from llava.data.checks.preflight import CheckSettings, preflight
from llava.data.checks.report import build_report, format_report
from llava.data.dataset import LazySupervisedDataset
from llava.errors import DataError, SettingsError
from llava.files import write_json
from llava.schema import JsonObject, Policy
from llava.train.arguments import DataArguments, TrainingArguments

logger = logging.getLogger(__name__)

REPORT = "data_check.json"


def open_checked(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Conversation,
    data_args: DataArguments,
    training_args: TrainingArguments,
    image_positions: int,
) -> LazySupervisedDataset:
    """Open a data file, check it as `--check_data` says, and apply `--bad_samples`.

    Raises:
        SettingsError: There are images, but --vision_tower or --image_folder is missing.
        DataError: A record or an image is bad under --bad_samples error, or no sample is left.
    """
    # Bad records are not refused here, so that they are reported together with bad images.
    opened_with: Policy = "repair" if data_args.bad_samples == "repair" else "skip"
    dataset = LazySupervisedDataset(
        path, tokenizer, data_args, template=template, bad_samples=opened_with, defers_errors=True
    )
    _require_image_flags(dataset, data_args)
    settings = CheckSettings(
        cast(Policy, data_args.bad_samples), thorough=data_args.check_data, image_positions=image_positions
    )
    checked = preflight(dataset, settings)
    report = build_report(checked, max_length=training_args.model_max_length)
    if training_args.should_save:
        write_json(dataset.index.folder / REPORT, report, ascii_only=True)
    for line in format_report(report):
        logger.info(line)
    logger.info("the full report is in %s", dataset.index.folder / REPORT)
    command = f"python -m llava.data.check {dataset.data_path} --image-folder {data_args.image_folder}"
    raise_refused(
        checked.problems, f"; `{command}` lists all of them; --bad_samples skip or repair trains without them"
    )
    if not len(checked.dataset):
        raise DataError(
            f"{dataset.data_path}: no sample is left; see {dataset.index.folder / REPORT}", code="no-samples"
        )
    _require_something_to_learn(report)
    if training_args.should_save and checked.problems:
        copy = Path(str(training_args.output_dir)) / f"data_check_{dataset.data_path.stem}.json"
        write_json(copy, report, ascii_only=True)
    return checked.dataset


def _require_something_to_learn(report: JsonObject) -> None:
    if not (positions := report.get("positions")):
        return  # not counted, with --check_data False
    reasons: dict[str, int] = positions["samples_that_teach_nothing"]
    if sum(reasons.values()) >= report["samples"]:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        raise DataError(
            f"{report['file']}: no sample teaches anything ({counts}); raise --model_max_length "
            f"{positions['model_max_length']}, or fix the data",
            code="nothing-to-learn",
        )


def _require_image_flags(dataset: LazySupervisedDataset, data_args: DataArguments) -> None:
    rows = dataset.samples.rows
    with_image = rows[dataset.index.with_image[rows]]
    if not len(with_image):
        return
    first = dataset.index.identifier(with_image[0])
    if not data_args.is_multimodal:
        raise SettingsError(
            f"{dataset.data_path}: sample {first!r} has an image: --vision_tower is missing",
            code="missing-flag",
        )
    if data_args.image_folder is None:
        raise SettingsError(
            f"{dataset.data_path}: sample {first!r} has an image: --image_folder is missing",
            code="missing-flag",
        )
