"""The command `llava check`: check a training file and report what training would leave out.

It reads every record, opens every image and counts every sample's positions (image included) on all cores.
What has not changed since an earlier check is not checked again. Training does the same before its first
step; this command needs no GPU. Without --model, positions are not counted.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from llava.command import run
from llava.conversation import conv_templates
from llava.errors import DataError
from llava.files import require_distinct, write_json
from llava.schema import POLICIES


@dataclass(slots=True)
class _DataArguments:
    """The data arguments of training that the check needs."""

    image_folder: str | None
    mm_use_im_start_end: bool = False
    is_multimodal: bool = True
    image_aspect_ratio: str = "square"
    image_processor: None = None


def main() -> None:
    flags = _parser().parse_args()
    require_distinct((flags.report,), (flags.file,))
    if flags.image_folder and not flags.image_folder.is_dir():
        raise DataError(f"{flags.image_folder}: no such folder", code="missing-folder")

    from llava.data.checks.policy import raise_refused  # on use, so that --help is quick
    from llava.data.checks.preflight import CheckSettings, preflight
    from llava.data.checks.report import build_report, format_report
    from llava.data.dataset import LazySupervisedDataset
    from llava.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(flags.model, model_max_length=flags.max_length) if flags.model else None
    dataset = LazySupervisedDataset(
        flags.file,
        tokenizer,
        _DataArguments(flags.image_folder, flags.mm_use_im_start_end),
        template=conv_templates[flags.version],
        bad_samples="repair" if flags.policy == "repair" else "skip",
    )
    settings = CheckSettings(flags.policy, image_positions=flags.image_positions, workers=flags.workers)
    checked = preflight(dataset, settings)
    report = build_report(checked, max_length=flags.max_length)
    sys.stdout.writelines(f"{line}\n" for line in format_report(report))
    if flags.report:
        write_json(flags.report, report, ascii_only=True)
    raise_refused(checked.problems, "; --policy skip or repair shows what either would leave")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava check",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="JSON array or .jsonl of conversations")
    parser.add_argument("--image-folder", type=Path, help="folder that the records' image paths start from")
    parser.add_argument("--policy", choices=POLICIES, default="error", help="what to do about bad records")
    parser.add_argument("--report", type=Path, help="write the full report to this JSON file")
    parser.add_argument("--model", type=Path, help="folder with the tokenizer, to count lengths")
    parser.add_argument("--version", choices=sorted(conv_templates), default="v1", help="prompt template")
    parser.add_argument("--max-length", type=int, default=2048, help="positions that the model is trained on")
    parser.add_argument("--image-positions", type=int, default=576, help="positions of an image")
    parser.add_argument("--mm-use-im-start-end", action="store_true", help="as in training")
    parser.add_argument("--workers", type=int, default=0, help="number of processes (default: all cores)")
    return parser


if __name__ == "__main__":
    run(main)
