"""The command `python -m llava.data.check`: can this file be trained on as it is, and what would be lost?

Every record is read, every image opened, and every sample's positions counted (image included), by all cores.
What was looked at before and has not changed is not looked at again. Training does the same before its first
step; this command does it alone, on any machine. Without --model, lengths are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.command import run
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.data.checks.policy import POLICIES, refuse
from llava.data.checks.preflight import Preflight, Settings, preflight
from llava.data.dataset import LazySupervisedDataset
from llava.errors import DataError
from llava.files import write_json
from llava.tokenizer import load_tokenizer

_EXAMPLES = 5
_QUANTILES = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "longest": 1.0}


@dataclass(slots=True)
class _Files:
    """What of the training flags says how samples are made."""

    image_folder: str | None
    mm_use_im_start_end: bool = False
    is_multimodal: bool = True


def main() -> None:
    flags = _flags().parse_args()
    if flags.image_folder and not flags.image_folder.is_dir():
        raise DataError(f"{flags.image_folder}: no such folder")
    tokenizer = load_tokenizer(flags.model, model_max_length=flags.max_length) if flags.model else None
    dataset = LazySupervisedDataset(
        flags.file,
        tokenizer,
        _Files(flags.image_folder, flags.mm_use_im_start_end),
        template=conv_templates[flags.version],
        bad_samples="repair" if flags.policy == "repair" else "skip",
    )
    settings = Settings(flags.policy, image_positions=flags.image_positions, workers=flags.workers)
    found = preflight(dataset, settings)
    made = report(found, max_length=flags.max_length)
    sys.stdout.writelines(f"{line}\n" for line in lines(made))
    if flags.report:
        write_json(flags.report, made, ascii_only=True)
    refuse(found.problems, "; --policy skip or repair shows what either would leave")


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.data.check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="JSON array or .jsonl of conversations")
    parser.add_argument("--image-folder", type=Path, help="folder that the records' image paths start from")
    parser.add_argument("--policy", choices=POLICIES, default="error", help="what becomes of bad records")
    parser.add_argument("--report", type=Path, help="write all that was found to this file, JSON")
    parser.add_argument("--model", type=Path, help="folder with the tokenizer, to count lengths")
    parser.add_argument("--version", choices=sorted(conv_templates), default="v1", help="prompt template")
    parser.add_argument("--max-length", type=int, default=2048, help="positions the model is trained on")
    parser.add_argument("--image-positions", type=int, default=576, help="positions an image takes")
    parser.add_argument("--mm-use-im-start-end", action="store_true", help="as in training")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: all cores)")
    return parser


def report(found: Preflight, *, max_length: int) -> dict[str, Any]:
    """What was found, as JSON can hold it; `max_length` is what the model reads."""
    index, samples = found.dataset.index, found.dataset.samples
    in_vain = samples.rows[index.image_in_vain[samples.rows]]
    made: dict[str, Any] = {
        "file": str(index.data_path),
        "image_folder": str(found.dataset.data_args.image_folder),
        "policy": found.dataset.bad_samples,
        "records": len(index),
        "samples": len(samples),
        "with_image": int(index.with_image[samples.rows].sum()),
        "images": found.images.named,
        "images_of_another_format_than_their_suffix": found.images.lying,
        "image_token_as_plain_text": [index.identifier(row) for row in in_vain],
        "problems": [
            {"row": each.row, "kind": each.kind, "outcome": each.outcome, "message": each.message}
            for each in found.problems
        ],
    }
    lengths = found.dataset.token_lengths
    if lengths is not None and len(samples):
        positions = lengths.positions
        cut = np.minimum(positions, max_length)
        made["positions"] = {
            "model_max_length": max_length,
            "mean": float(positions.mean()),
            **{name: int(np.quantile(positions, part)) for name, part in _QUANTILES.items()},
            "total": int(cut.sum(dtype=np.int64)),
            "supervised": int(lengths.supervised.sum(dtype=np.int64)),
            "samples_cut": int((positions > max_length).sum()),
            "samples_that_teach_nothing": lengths.problem_counts(max_length),
        }
    return made


def lines(made: dict[str, Any]) -> Iterator[str]:
    """A report for people."""
    yield f"{made['file']}: {made['records']:,} records, {made['samples']:,} left to learn from"
    lying, in_vain = made["images_of_another_format_than_their_suffix"], made["image_token_as_plain_text"]
    yield f"{made['with_image']:,} with an image, {made['images']:,} different images"
    if lying:
        yield f"{len(lying):,} images are of another format than their suffix, which does no harm"
    if in_vain:
        yield (
            f"{len(in_vain):,} records without image hold {DEFAULT_IMAGE_TOKEN}, which is plain text there: "
            f"{in_vain[0]!r} is the first"
        )
    if positions := made.get("positions"):
        spread = ", ".join(f"{name} {positions[name]:,}" for name in _QUANTILES)
        yield f"positions of a sample, image included: mean {positions['mean']:,.0f}, {spread}"
        yield f"{positions['samples_cut']:,} are cut at {positions['model_max_length']:,} positions"
        for reason, count in positions["samples_that_teach_nothing"].items():
            yield f"{count:,} teach nothing: {reason}"
    counts = Counter((problem["outcome"], problem["kind"]) for problem in made["problems"])
    for (outcome, kind), count in counts.most_common():
        yield f"{count:,} {outcome}: {kind}"
        alike = (each for each in made["problems"] if (each["outcome"], each["kind"]) == (outcome, kind))
        for _, each in zip(range(_EXAMPLES), alike, strict=False):
            yield f"    {each['message']}"


if __name__ == "__main__":
    run(main)
