"""Score LLaVA's SEED-Bench answers, print the accuracies, and write the leaderboard's upload.

With --save-path (MLLM-DataEngine's flag) metrics.json is written there, in the one schema of
`llava.scoring.metrics`, with the fork's flat percentages beside it: every question type, "total" and "image".
The fork wrote its file twice, and the second time kept "image" alone; here all numbers stay. As in the fork,
--save-path leaves out the video line. Questions of a kind (video) that nobody answered were not asked and
are left out, which standard error says; a missing answer among those asked is an error, unless
--allow-missing counts it as wrong.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.benchmarks.answers import read_answers
from llava.benchmarks.evaluation import METRICS
from llava.benchmarks.tasks import seed
from llava.command import run
from llava.files import require_distinct
from llava.schema import Scores
from llava.scoring.metrics import write_scores

logger = logging.getLogger(__name__)


def main() -> None:
    """Print the accuracies, then write metrics.json and the upload."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", type=Path, required=True, help="answers, one JSON object a line")
    parser.add_argument("--result-upload-file", type=Path, required=True)
    parser.add_argument("--save-path", type=Path, help="folder that gets metrics.json")
    parser.add_argument("--allow-missing", action="store_true", help="count missing answers as wrong")
    args = parser.parse_args()
    metrics = args.save_path and args.save_path / METRICS
    require_distinct((args.result_upload_file, metrics), (args.annotation_file, args.result_file))
    answers = read_answers(args.result_file)
    known = seed.read_seed_items(args.annotation_file)
    items = seed.select_asked(known, answers)
    left_out = len(known) - len(items)
    scores = seed.judge_items(items, answers, allow_missing=args.allow_missing, left_out=left_out)
    scores = seed.BENCHMARK.with_official_facts(scores, scores.split)
    types = {score.name: score.value or 0.0 for score in scores.scores if score.group == "type"}
    totals = _totals(scores)
    for name, value in types.items():
        print(f"{name}: {value:.2f}%")
    print(f"Total accuracy: {totals['total']:.2f}%")
    if len(items) != seed.SIZES["total"]:
        logger.warning("the total is over %d of %d questions", len(items), seed.SIZES["total"])
    for text in (*scores.warnings, *scores.notes):
        logger.warning("%s", text)
    for kind in ("image", "video"):
        if kind in totals and not (kind == "video" and args.save_path):
            print(f"{kind} accuracy: {totals[kind]:.2f}%")
    if args.save_path:
        flat = {name: round(value, 3) for name, value in {**types, **totals}.items()}
        write_scores(args.save_path, scores, extra=flat)
    seed.write_seed_upload(items, answers, args.result_upload_file, allow_missing=args.allow_missing)


def _totals(scores: Scores) -> dict[str, float]:
    """Accuracy over image questions, over video questions, and over all that were asked."""
    found = {score.name: score.value or 0.0 for score in scores.scores if score.group == "total"}
    return {"total": found.get("total", next(iter(found.values()))), **found}


if __name__ == "__main__":
    run(main)
