"""Turn LLaVA's MMBench answers into the xlsx for MMBench's server, equal to the original's cell by cell."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.benchmarks.answers import read_answers
from llava.benchmarks.evaluation import require_model_name
from llava.benchmarks.tasks.mmbench import write_mmbench_upload
from llava.command import run

logger = logging.getLogger("llava.convert_mmbench")


def main() -> None:
    """Read RESULT_DIR/EXPERIMENT.jsonl, write UPLOAD_DIR/EXPERIMENT.xlsx."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotation-file", type=Path, required=True, help="the benchmark's TSV")
    parser.add_argument("--result-dir", type=Path, required=True)
    parser.add_argument("--upload-dir", type=Path, required=True)
    parser.add_argument("--experiment", required=True, help="the model's name")
    args = parser.parse_args()
    require_model_name(args.experiment)
    answers = read_answers(args.result_dir / f"{args.experiment}.jsonl")
    upload = args.upload_dir / f"{args.experiment}.xlsx"
    missing = write_mmbench_upload(args.annotation_file, answers, upload, name="mmbench")
    if missing:
        logger.warning("%d rows have no answer; their prediction is empty", missing)


if __name__ == "__main__":
    run(main)
