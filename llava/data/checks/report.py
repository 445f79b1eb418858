"""Report the results of a data check, as JSON and on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.checks.preflight import CheckedData
from llava.schema import JsonObject

_EXAMPLES = 5
_QUANTILES = {"median": 0.5, "95 %": 0.95, "99 %": 0.99, "longest": 1.0}


def build_report(checked: CheckedData, *, max_length: int) -> JsonObject:
    """Return the results of a check for JSON; `max_length` is the model's number of positions."""
    index, samples = checked.dataset.index, checked.dataset.samples
    unused_token = samples.rows[index.unused_image_token[samples.rows]]
    report: JsonObject = {
        "file": str(index.data_path),
        "image_folder": str(checked.dataset.data_args.image_folder),
        "policy": checked.dataset.bad_samples,
        "records": len(index),
        "samples": len(samples),
        "with_image": int(index.with_image[samples.rows].sum()),
        "images": checked.images.named,
        "images_of_another_format_than_their_suffix": checked.images.mislabelled,
        "image_token_as_plain_text": [index.identifier(row) for row in unused_token],
        "problems": [
            {
                "row": problem.row,
                "kind": problem.kind,
                "outcome": problem.outcome,
                "message": problem.message,
            }
            for problem in checked.problems
        ],
    }
    lengths = checked.dataset.token_lengths
    if lengths is not None and len(samples):
        positions = lengths.positions
        cut = np.minimum(positions, max_length)
        report["positions"] = {
            "model_max_length": max_length,
            "mean": float(positions.mean()),
            **{name: int(np.quantile(positions, q)) for name, q in _QUANTILES.items()},
            "total": int(cut.sum(dtype=np.int64)),
            "supervised": int(lengths.supervised.sum(dtype=np.int64)),
            "samples_cut": int((positions > max_length).sum()),
            "samples_that_teach_nothing": lengths.problem_counts(max_length),
        }
    return report


def format_report(report: JsonObject) -> Iterator[str]:
    """Yield the lines of a report for the terminal."""
    yield f"{report['file']}: {report['records']:,} records, {report['samples']:,} left to learn from"
    mislabelled = report["images_of_another_format_than_their_suffix"]
    unused_token = report["image_token_as_plain_text"]
    yield f"{report['with_image']:,} with an image, {report['images']:,} different images"
    if mislabelled:
        yield f"{len(mislabelled):,} images have the suffix of another format, which does no harm"
    if unused_token:
        count, first = len(unused_token), unused_token[0]
        yield f"{count:,} records without an image contain {DEFAULT_IMAGE_TOKEN} as text, first {first!r}"
    if positions := report.get("positions"):
        spread = ", ".join(f"{name} {positions[name]:,}" for name in _QUANTILES)
        yield f"positions of a sample, image included: mean {positions['mean']:,.0f}, {spread}"
        yield f"{positions['samples_cut']:,} are cut at {positions['model_max_length']:,} positions"
        for reason, count in positions["samples_that_teach_nothing"].items():
            yield f"{count:,} teach nothing: {reason}"
    counts = Counter((problem["outcome"], problem["kind"]) for problem in report["problems"])
    for (outcome, kind), count in counts.most_common():
        yield f"{count:,} {outcome}: {kind}"
        same = (row for row in report["problems"] if (row["outcome"], row["kind"]) == (outcome, kind))
        yield from (f"    {row['message']}" for row in islice(same, _EXAMPLES))
