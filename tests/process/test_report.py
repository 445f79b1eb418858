"""Test the report: intervals against published values, paired differences, runs that cannot be compared."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean, stdev

import pytest

from llava import benchmarks
from llava.errors import DataError
from llava.report import ComparedRun, compare, paired_difference, read_runs, to_json, to_markdown
from llava.schema import Answer, Score, Scores, Verdict
from llava.scoring import intervals
from llava.scoring.metrics import read_scores, write_scores
from support.benchmark_downloads import MAKERS
from support.errors import raises_code


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)  # fmt: skip
def test_wilson_gives_newcombes_published_values(right: int, n: int, low: float, high: float) -> None:
    """The first four rows are of R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3."""
    assert intervals.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("both", "after", "before", "neither", "low", "high"),
    [(36, 12, 2, 0, 0.0569, 0.3404), (2, 98, 0, 0, 0.9178, 0.9945), (54, 0, 0, 0, -0.0664, 0.0664)],
)
def test_paired_proportions_give_newcombes_published_values(
    both: int, after: int, before: int, neither: int, low: float, high: float
) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, table III, method 10."""
    ours = [(1.0, 1.0)] * both + [(0.0, 1.0)] * after + [(1.0, 0.0)] * before + [(0.0, 0.0)] * neither
    got = intervals.paired_proportions([one for one, _ in ours], [two for _, two in ours])
    assert got == pytest.approx((low, high), abs=5e-4)


def test_a_ratios_units_average_to_the_ratio_and_spread_as_a_bootstrap_does() -> None:
    rng = random.Random(5)
    bottoms = [rng.randint(1, 9) for _ in range(400)]
    tops = [rng.randint(0, bottom) for bottom in bottoms]
    units = intervals.ratio_units(tops, bottoms)
    assert fmean(units) == pytest.approx(sum(tops) / sum(bottoms))
    drawn = [rng.choices(range(400), k=400) for _ in range(1000)]
    ratios = [sum(tops[i] for i in draw) / sum(bottoms[i] for i in draw) for draw in drawn]
    low, high = intervals.mean(units) or (0.0, 0.0)
    assert (high - low) / 2 / NormalDist().inv_cdf(0.975) == pytest.approx(stdev(ratios), rel=0.1)


def scores_of(points: dict[str, list[float]], benchmark: str = "toy") -> Scores:
    verdicts = [
        Verdict(f"{kind}{n}", kind, point, "said", "true")
        for kind, row in points.items()
        for n, point in enumerate(row)
    ]
    types = [
        Score(kind, 100 * fmean(row), len(row), "type", 0.0, 100.0, "wilson", over={"type": kind})
        for kind, row in points.items()
    ]
    value = 100 * fmean([verdict.score for verdict in verdicts])
    total = Score("total", value, len(verdicts), low=0.0, high=100.0, over={})
    counts = {"questions": len(verdicts), "unanswered": 0}
    return Scores(benchmark, "total", (*types, total), tuple(verdicts), counts)


BASE = scores_of({"color": [1.0, 0.0] * 20, "count": [1.0, 1.0, 0.0, 0.0]})
BETTER = scores_of({"color": [1.0, 1.0] * 20, "count": [1.0, 1.0, 0.0, 1.0]})


def test_differences_are_paired_question_by_question() -> None:
    color = paired_difference(BASE, BETTER, "type", "color")
    assert color is not None
    assert color.value == 50.0
    assert color.is_clear
    count = paired_difference(BASE, BETTER, "type", "count")
    assert count is not None
    assert count.value == 25.0
    assert not count.is_clear
    same = paired_difference(BASE, BASE, "total", "total")
    assert same is not None
    assert same.value == 0.0
    assert (same.low or 1.0) < 0.0 < (same.high or -1.0)


def test_pairing_narrows_the_interval_when_answers_agree() -> None:
    before = [float(n % 2) for n in range(200)]
    after = before.copy()
    after[0], after[2], after[4] = 1.0, 1.0, 1.0
    shuffled = after[100:] + after[:100]
    low, high = intervals.paired_proportions(before, after)
    wide_low, wide_high = intervals.paired_proportions(before, [1.0 - x for x in shuffled])
    assert high - low < (wide_high - wide_low) / 3


def test_soft_scores_differ_with_the_normal_interval() -> None:
    before, after = scores_of({"x": [0.3, 0.6, 0.9, 0.0]}), scores_of({"x": [0.6, 0.9, 1.0, 0.3]})
    change = paired_difference(before, after, "total", "total")
    steps = [0.3, 0.3, 0.1, 0.3]
    half = NormalDist().inv_cdf(0.975) * stdev(steps) / 2
    assert change is not None
    assert (change.low, change.high) == pytest.approx((25 - 100 * half, 25 + 100 * half))


def test_sums_of_means_differ_with_their_parts(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    mme = benchmarks.get("mme")
    wrong = [replace(answer, text="No") for answer in tiny.answers[:4:2]]
    worse = mme.score(tmp_path, [wrong[0], *tiny.answers[1:]])
    best = mme.score(tmp_path, tiny.answers)
    change = paired_difference(worse, best, "total", "perception")
    assert change is not None
    assert change.value == 75.0
    assert change.low is not None
    assert change.low < 75.0 < (change.high or 0.0)


def test_the_table_marks_clear_differences() -> None:
    runs = [ComparedRun("base", BASE), ComparedRun("tuned", BETTER)]
    text = to_markdown(runs, compare(runs))
    lines = text.splitlines()
    assert lines[2].startswith(
        "| question type | n | base | 95 % interval | tuned | 95 % interval | tuned - base |"
    )
    assert lines[4].startswith(
        "| color | 40 | 50.00 | [0.00, 100.00] | 100.00 | [0.00, 100.00] | +50.00 * | ["
    )
    assert "| count | 4 | 50.00 |" in lines[5]
    assert "+25.00 |" in lines[5]
    assert lines[6].startswith("| **total** | 44 |")
    assert "published" not in text


def test_published_figures_are_labelled() -> None:
    runs = [ComparedRun("mine", replace(BASE, benchmark="seed"))]
    text = to_markdown(runs, compare(runs), published=True)
    assert "| published: DataEngine baseline 7B LoRA |  | 66.04 |" in text


def test_published_figures_are_shown_as_published_and_their_parts_are_not() -> None:
    runs = [ComparedRun("mine", replace(BASE, benchmark="mme"))]
    text = to_markdown(runs, compare(runs), published=True)
    assert "| published: DataEngine baseline 7B LoRA |  | 1475 |" in text
    assert "| published: LLaVA-1.5-7B LoRA |  | 1476.9 |" in text
    assert "290" not in text


def test_json_holds_scores_and_differences() -> None:
    runs = [ComparedRun("base", BASE), ComparedRun("tuned", BETTER)]
    value = json.loads(to_json(runs, compare(runs)))
    row = value["rows"][0]
    assert (row["name"], row["scores"]["base"]["value"], row["differences"]["tuned"]["value"]) == (
        "color",
        50.0,
        50.0,
    )
    assert row["differences"]["tuned"]["excludes_zero"] is True
    assert "base" not in row["differences"]


def test_runs_over_other_questions_are_not_compared() -> None:
    fewer = scores_of({"color": [1.0, 0.0] * 20})
    with raises_code("different-questions", DataError) as error:
        compare([ComparedRun("base", BASE), ComparedRun("other", fewer)])
    assert all(fact in str(error.value) for fact in ("base", "44", "other", "40"))


def save(folder: Path, scores: Scores) -> Path:
    return write_scores(folder, scores)


def report(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llava.report", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_compares_folders_with_the_baseline_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "seed/base", BASE)
    save(tmp_path / "seed/tuned", BETTER)
    result = report(tmp_path / "seed", "--baseline", "tuned", "--out", tmp_path / "table.md")
    assert (result.returncode, result.stdout) == (0, "")
    text = (tmp_path / "table.md").read_text()
    assert "| base - tuned |" in text
    assert "| -50.00 * |" in text
    by_path = report(tmp_path / "seed", "--baseline", tmp_path / "seed/tuned/metrics.json")
    assert by_path.stdout == text


def test_several_benchmarks_get_a_table_each(tmp_path: Path) -> None:
    for run, scores in (("base", BASE), ("tuned", BETTER)):
        save(tmp_path / run / "toy", scores)
        save(tmp_path / run / "other", replace(scores, benchmark="other"))
    runs = read_runs([tmp_path / "base", tmp_path / "tuned"])
    text = to_markdown(runs, compare(runs))
    assert text.count("### ") == 2
    assert text.count("+50.00 *") == 2
    turned = to_markdown(runs, compare(runs, str(tmp_path / "tuned")))
    assert turned.count("-50.00 *") == 2


def test_an_unknown_baseline_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a", BASE)
    result = report(tmp_path / "a", "--baseline", "b")
    assert result.returncode == 2
    assert "--baseline 'b'" in result.stderr
    assert result.stderr.endswith(" a\n")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"image": 37.931}', "None"),
        ("[]", "list"),
        ('{"schema": 1, "benchmark": "x"}', "headline"),
    ],
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with raises_code("wrong-schema", DataError) as error:
        read_scores(tmp_path)
    assert found in str(error.value)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with raises_code("missing-metrics", DataError):
        read_runs([tmp_path])


def test_the_same_answers_get_the_same_scores(tmp_path: Path) -> None:
    tiny = MAKERS["seed"](tmp_path)
    seed = benchmarks.get("seed")
    one, two = (seed.score(tmp_path, tiny.answers) for _ in range(2))
    assert one == two
    changed = seed.score(tmp_path, [*tiny.answers[:-1], Answer(13, "", "A")])
    change = paired_difference(one, changed, "type", "Instances Counting")
    assert change is not None
    assert change.value == -100.0
