"""The row of MLLM-DataEngine's results table for one model, with the published rows marked as such."""

from __future__ import annotations

from collections.abc import Sequence

from llava.schema import Score, Scores
from llava.scoring.metrics import format_table
from llava.scoring.published import DATA_ENGINE, DATA_ENGINE_BASELINE, LLAVA_LORA, PUBLISHED

BENCHMARKS = {"seed", "mmbench", "mme", "gqa", "vqav2", "scienceqa"}
COLUMNS = ("SEED", "MMBench", "MME", "GQA", "VQAv2", "ScienceQA")
COMPARED = (DATA_ENGINE_BASELINE, DATA_ENGINE, LLAVA_LORA)
NOTE = "SEED: image part. MME: perception/cognition (total). ScienceQA: ALL/IMG. -: not scored here."


def table(name: str, runs: Sequence[Scores]) -> str:
    """Return the row of the model `name` from its scores of several benchmarks, and the published rows."""
    by_benchmark = {scores.benchmark: scores for scores in runs}
    ours = [name]
    ours += [
        _number(by_benchmark.get("seed"), "image"),
        _number(by_benchmark.get("mmbench"), "circular"),
        _mme(by_benchmark.get("mme")),
        _number(by_benchmark.get("gqa"), "accuracy"),
        _number(by_benchmark.get("vqav2"), "overall"),
        "/".join(_number(by_benchmark.get("scienceqa"), subset) for subset in ("ALL", "IMG")),
    ]
    published = [_published_row(model) for model in COMPARED]
    notes = [f"{scores.benchmark}: {note}." for scores in runs for note in scores.notes]
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


def _found(scores: Scores | None, name: str) -> Score | None:
    if scores is None:
        return None
    return next((s for s in scores.scores if (s.group, s.name) == ("total", name)), None)


def _number(scores: Scores | None, name: str, form: str = ".2f") -> str:
    score = _found(scores, name)
    return "-" if score is None or score.value is None else format(score.value, form)


def _mme(scores: Scores | None) -> str:
    halves = [_found(scores, name) for name in ("perception", "cognition")]
    values = [score.value for score in halves if score is not None and score.value is not None]
    total = f" ({sum(values):.1f})" if len(values) == len(halves) else ""
    return "/".join(_number(scores, name, ".1f") for name in ("perception", "cognition")) + total
