"""The row of MLLM-DataEngine's results table for one model, with the published rows marked as such."""

from __future__ import annotations

from collections.abc import Sequence

from llava.schema import Score, Scores
from llava.scoring.metrics import format_table
from llava.scoring.published import DATA_ENGINE, DATA_ENGINE_BASELINE, LLAVA_LORA, PUBLISHED

BENCHMARKS = {"seed", "mmbench", "mme", "gqa", "vqav2", "scienceqa"}
COLUMNS = ("SEED", "MMBench", "MME", "GQA", "VQAv2", "ScienceQA")
COMPARED = (DATA_ENGINE_BASELINE, DATA_ENGINE, LLAVA_LORA)
NOTE = (
    "SEED: image part. MME: perception/cognition (total). ScienceQA: ALL/IMG. -: not scored here. "
    "(k of n): k of the official n questions were scored. !: see the warning."
)


def table(name: str, runs: Sequence[Scores]) -> str:
    """Return the row of the model `name` from its scores of several benchmarks, and the published rows."""
    by_benchmark = {scores.benchmark: scores for scores in runs}
    ours = [name]
    ours += [
        _cell(by_benchmark.get("seed"), "image"),
        _cell(by_benchmark.get("mmbench"), "circular"),
        _cell(by_benchmark.get("mme"), "perception", "cognition", form=".1f", with_sum=True),
        _cell(by_benchmark.get("gqa"), "accuracy"),
        _cell(by_benchmark.get("vqav2"), "overall"),
        _cell(by_benchmark.get("scienceqa"), "ALL", "IMG"),
    ]
    published = [_published_row(model) for model in COMPARED]
    notes = [f"WARNING: {scores.benchmark}: {text}." for scores in runs for text in scores.warnings]
    notes += [f"{scores.benchmark}: {note}." for scores in runs for note in scores.notes]
    return "\n".join([format_table(("model", *COLUMNS), [ours, *published]), NOTE, *notes])


def _published_row(model: str) -> list[str]:
    def figure(name: str) -> str:
        return PUBLISHED[model].get(name, "-")

    mme = [figure("mme"), figure("mme/cognition")]
    total = "" if "-" in mme else f" ({sum(map(int, mme))})"
    return [
        f"published: {model}",
        figure("seed"),
        figure("mmbench"),
        "/".join(mme) + total,
        figure("gqa"),
        figure("vqav2"),
        f"{figure('scienceqa/ALL')}/{figure('scienceqa')}",
    ]


def _cell(scores: Scores | None, *names: str, form: str = ".2f", with_sum: bool = False) -> str:
    """Format a benchmark's total scores as `a/b (a + b)`, with what they are over if it is not everything."""
    if scores is None:
        return "/".join("-" for _ in names)
    found = [_find_total(scores, name) for name in names]
    values = [None if score is None else score.value for score in found]
    known = [value for value in values if value is not None]
    cell = "/".join("-" if value is None else format(value, form) for value in values)
    if with_sum and len(known) == len(names):
        cell += f" ({sum(known):{form}})"
    partial = [score.count for score in found if score is not None and score.is_partial]
    return cell + (f" ({', '.join(partial)})" if partial else "") + ("!" if scores.warnings else "")


def _find_total(scores: Scores, name: str) -> Score | None:
    return next((score for score in scores.scores if (score.group, score.name) == ("total", name)), None)
