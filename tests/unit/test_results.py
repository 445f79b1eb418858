"""Test `llava report results`: models, paired tests and their correction, and every format."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import pytest

from llava.report import __main__ as report
from llava.report.bars import draw_bars
from llava.report.models import read_models
from llava.report.results_formats import results_html, results_json, results_latex, results_markdown
from llava.report.results_tables import Results, build_results
from llava.schema import Score, Scores, Verdict
from llava.scoring.intervals import mean_interval
from llava.scoring.markup import escape_latex
from llava.scoring.metrics import write_scores
from llava.scoring.paired_tests import holm, sign_flip_test
from support.errors import raises_code

HOSTILE = "_a|b & <i>50%</i> #1 $x^2$ {c} \\evil ~`'\" -- é 中 \u202e"


def scores_of(points: Mapping[str, Sequence[float]], benchmark: str = "seed", official: int = 80) -> Scores:
    """Return scores of one benchmark from the points of each question type."""

    def score(name: str, values: Sequence[float], group: str, over: dict[str, str], of: int) -> Score:
        low, high = mean_interval(values)
        interval = (100 * low, 100 * high, "wilson")
        return Score(name, 100 * fmean(values), len(values), group, *interval, over=over, of=of)

    verdicts = [
        Verdict(f"{kind}{n}", kind, point, "B", "A")
        for kind, row in points.items()
        for n, point in enumerate(row)
    ]
    types = [score(kind, row, "type", {"type": kind}, len(row)) for kind, row in points.items()]
    total = score("image", [verdict.score for verdict in verdicts], "total", {}, official)
    return Scores(benchmark, "image", (*types, replace(total, quoted=True)), tuple(verdicts))


BASE = scores_of({"color": [1.0] * 20 + [0.0] * 20, "count": [1.0, 0.0] * 20})
# Seven questions about colors are won, none is lost; one about counts is lost.
BETTER = scores_of({"color": [1.0] * 27 + [0.0] * 13, "count": [0.0, 0.0] + [1.0, 0.0] * 19})
PART = scores_of({"color": [1.0, 0.0] * 5})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder as `llava eval` fills it, with three models."""
    for name, scores in {"base": BASE, "tuned": BETTER, "part": PART}.items():
        write_scores(tmp_path / "seed_bench/answers" / name, scores)
    other = replace(BETTER, benchmark="toy", warnings=("all answers are empty",))
    write_scores(tmp_path / "toy/tuned", other)
    write_scores(tmp_path / "toy/base", replace(BASE, benchmark="toy"))
    return tmp_path


def results_of(root: Path, *, published: bool = True) -> Results:
    return build_results(read_models([str(root)]), "base", published=published)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["llava report", "results", *map(str, words)])
    report.main()


@pytest.mark.parametrize(
    ("changes", "p"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([1.0] * 7, 2 / 2**7),
        ([1.0] * 7 + [-1.0], 18 / 2**8),
        # Of the eight ways to sign 3, 1 and 1 two sum to at least 5 in size, and six to at least 3.
        ([3.0, 1.0, 1.0], 2 / 8),
        ([3.0, -1.0, 1.0], 6 / 8),
    ],
)
def test_a_difference_is_tested_exactly_where_it_can_be(changes: list[float], p: float) -> None:
    assert sign_flip_test(changes) == pytest.approx(p)
    assert sign_flip_test([-change for change in changes]) == pytest.approx(p)


def test_the_three_ways_to_a_p_value_agree() -> None:
    drawn = random.Random(0)
    changes = [drawn.choice((-1.0, 1.0)) for _ in range(1_100)] + [1.0] * 60
    exact = sign_flip_test(changes)
    normal = sign_flip_test([*changes, 0.001])
    resampled = sign_flip_test([*changes[-900:], 0.001])
    assert normal == pytest.approx(exact, rel=0.15)
    assert resampled == pytest.approx(sign_flip_test(changes[-900:]), rel=0.3)


def test_holm_keeps_the_order_of_p_values_and_never_exceeds_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    "place",
    [
        "seed_bench/answers/m/metrics.json",
        "seed_bench/answers/split/m/metrics.json",
        "m/seed/metrics.json",
        "seed/m/metrics.json",
        "m.json",
    ],
)
def test_a_model_is_named_after_its_folder(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    write_scores(path.parent, BASE).rename(path)
    assert [model.name for model in read_models([str(path)])] == ["m"]
    for name in ("Ours (13B)", "lr=2e-5"):
        assert [model.name for model in read_models([f"{name}={path}"])] == [name]


def test_two_runs_of_one_model_are_refused(root: Path) -> None:
    with raises_code("two-runs"):
        read_models([str(root), str(root / "toy/base")])
    with raises_code("two-runs"):
        read_models([f"m={root}"])


def test_models_are_compared_with_the_baseline(root: Path) -> None:
    results = results_of(root)
    assert results.models == ("base", "part", "tuned")
    assert results.main.columns == ("SEED-Bench (image)", "toy")
    base, part, tuned = results.main.rows[:3]
    # 7 won and 1 lost of 80, twice: p = 18/256, doubled for two tests.
    for cell in tuned.cells:
        assert cell.difference is not None
        assert cell.difference.value == pytest.approx(7.5)
        assert cell.p == pytest.approx(18 / 256)
        assert cell.adjusted == pytest.approx(2 * 18 / 256)
    assert [cell.difference for cell in base.cells] == [None, None]
    assert tuned.cells[1].lines[0] == "57.50!"
    assert part.cells[0].lines[0] == "50.00†"
    assert part.cells[0].difference is None
    assert part.cells[1].lines == ["-"]
    # Of four tests by type the two of colors have p = 2/128, of which the smallest is taken four times.
    (seed, toy) = results.types
    assert [table.columns for table in (seed, toy)] == [("base", "part", "tuned"), ("base", "tuned")]
    assert seed.rows[0].cells[2].adjusted == pytest.approx(4 * 2 / 128)
    told = "\n".join(results.notes)
    assert all(fact in told for fact in ("part", "10 of 80", "all answers are empty", "80 questions"))


def test_the_grades_of_two_judges_are_shown_without_a_difference(tmp_path: Path) -> None:
    for name, scores in {"a": BASE, "b": BETTER}.items():
        write_scores(tmp_path / name, replace(scores, judge=f"judge of {name}"))
    results = build_results(read_models([str(tmp_path)]))
    cell = results.main.rows[1].cells[0]
    assert cell.lines[0] == "57.50"
    assert (cell.difference, cell.p) == (None, None)
    assert all(any(note.endswith(f"judged by judge of {name}.") for note in results.notes) for name in "ab")


def test_a_clear_difference_stays_clear_among_many(tmp_path: Path) -> None:
    kinds = [f"type {n}" for n in range(20)]
    before = {kind: [0.0, 1.0] * 10 for kind in kinds}
    after = {kind: [0.0, 1.0] * 10 for kind in kinds} | {
        "type 3": [1.0] * 20,
        "type 4": [1.0] * 6 + [0.0, 1.0] * 7,
    }
    for name, points in {"a": before, "b": after}.items():
        write_scores(tmp_path / name, scores_of(points))
    (table,) = build_results(read_models([str(tmp_path)])).types
    marked = [row.label for row in table.rows if row.cells[1].is_significant]
    assert marked == ["type 3"]


def test_published_rows_are_marked_in_every_format(root: Path) -> None:
    results = results_of(root)
    rows = [row for row in results.main.rows if row.is_published]
    assert [row.cells[0].published for row in rows] == ["68.2", "66.04", "68.57"]
    labels = [row.label for row in rows]
    assert results_markdown(results).count("| published: ") == 3
    assert results_latex(results).count(" (published) & ") == 3
    assert results_html(results, {}).count(">published</span>") == 3
    found = json.loads(results_json(results))["main"]["rows"]
    assert [row["name"] for row in found if row["published"]] == labels
    assert not any(row.is_published for row in results_of(root, published=False).main.rows)


def test_published_figures_are_of_the_usual_split_only(tmp_path: Path) -> None:
    write_scores(tmp_path / "m", replace(BASE, split="all"))
    results = build_results(read_models([str(tmp_path)]), published=True)
    assert results.main.columns == ("SEED-Bench (image) all",)
    assert not any(row.is_published for row in results.main.rows)


class Cells(HTMLParser):
    """Collects the texts of a page's tables; any tag that a name brings in is kept, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def hostile(tmp_path: Path) -> Results:
    """Return results whose models and types have names that mean something in each format."""
    points = {HOSTILE: [1.0, 0.0] * 40}
    for name in ("[x]", HOSTILE):
        write_scores(tmp_path / str(len(name)), scores_of(points))
    words = [f"{name}={tmp_path / str(len(name))}" for name in ("[x]", HOSTILE)]
    return build_results(read_models(words), published=True)


def test_names_are_shown_as_they_are(hostile: Results) -> None:
    cells = Cells()
    cells.feed(results_html(hostile, {}))
    assert HOSTILE.replace("\u202e", " ") in cells.texts
    assert not cells.tags & {"i", "script"}
    assert json.loads(results_json(hostile))["models"] == ["[x]", HOSTILE]
    table = [line for line in results_markdown(hostile).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {3, 4}
    assert "<i>" not in results_markdown(hostile)


def test_latex_special_characters_are_escaped() -> None:
    assert escape_latex("a_b & 50% #1 {c}") == r"a\_b \& 50\% \#1 \{c\}"
    assert escape_latex("[x] é ñ 中 --- \\input{x}") == (
        r"{}[x] \'e \~n [U+4E2D] -{}-{}- \textbackslash{}input\{x\}"
    )


def test_latex_compiles(hostile: Results, root: Path, tmp_path: Path) -> None:
    program = shutil.which("pdflatex") or pytest.skip(
        "needs pdflatex: apt-get install texlive-latex-recommended"
    )
    for number, results in enumerate((hostile, results_of(root))):
        (tmp_path / f"{number}.tex").write_text(results_latex(results))
    inputs = r"\input{0}\input{1}"
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{inputs}\end{{document}}"
    )
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2_000:]


def test_the_command_writes_what_the_suffix_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    run(monkeypatch, root, "--baseline", "base", "--out", out / "r.html", "--bars", out / "bars")
    page = (out / "r.html").read_text()
    assert re.findall(r"(?:src|href)='(\w+:[\w/+]+)", page) == ["data:image/svg+xml"] * 2
    assert sorted(path.name for path in (out / "bars").iterdir()) == [
        "seed-image.png",
        "seed-image.svg",
        "toy.png",
        "toy.svg",
    ]
    assert (out / "bars/toy.png").read_bytes().startswith(b"\x89PNG")
    run(monkeypatch, root, "--format", "json")
    assert json.loads(capsys.readouterr().out)["baseline"] == "base"
    for code, words in {
        "unknown-baseline": (root, "--baseline", "gone"),
        "unknown-format": (root, "--out", out / "r.docx"),
        "missing-metrics": (out,),
        "output-is-input": (root / "toy/base", "--out", root / "toy/base/metrics.json", "--format", "json"),
    }.items():
        with raises_code(code):
            run(monkeypatch, *words)


def test_bars_show_names_as_they_are(hostile: Results) -> None:
    pytest.importorskip("matplotlib")
    one, two = (draw_bars(hostile.types[0], "svg") for _ in range(2))
    assert one.startswith(b"<?xml")
    assert len(one) == len(two)
