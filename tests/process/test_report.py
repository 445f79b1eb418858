"""Test the report: paired differences, runs that cannot be compared."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from llava import benchmarks
from llava.errors import DataError
from llava.report import ComparedRun, compare, paired_difference, read_runs, to_json, to_markdown
from llava.schema import Answer, Score, Scores, Verdict
from llava.scoring.metrics import read_scores, write_scores
from support.benchmark_downloads import MAKERS
from support.errors import raises_code
from support.warm_python import warm_python


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
    total = Score("total", value, len(verdicts), low=0.0, high=100.0, over={}, quoted=True)
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


def test_older_files_without_the_largest_value_are_compared(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    mme = benchmarks.get("mme")
    paths = [save(tmp_path / name, mme.score(tmp_path, answers)) for name, answers in (
        ("best", tiny.answers), ("worst", [replace(answer, text="?") for answer in tiny.answers])
    )]  # fmt: skip
    for path in paths:
        rows = json.loads(path.read_text())
        for row in rows["scores"]:
            del row["top"], row["effective"]
        path.write_text(json.dumps(rows))
    best, worst = map(read_scores, paths)
    change = paired_difference(worst, best, "total", "perception")
    assert change is not None
    assert (change.low or 0.0) < change.value == 600.0 == change.high


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


def changed(scores: Scores, number: int, **facts: object) -> Scores:
    """Return scores in which one verdict has other facts."""
    verdicts = list(scores.verdicts)
    verdicts[number] = replace(verdicts[number], **facts)  # type: ignore[arg-type]
    return replace(scores, verdicts=tuple(verdicts))


ASKED = changed(
    BASE, 1, question="Which?\nA. ant\nB. bee", image="x.jpg", asked="0f", facets={"kind": "image"}
)
ASKED = replace(ASKED, scores=(*ASKED.scores, Score("image", 0.0, 1, over={"kind": "image"})))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"question": "Which?\nA. bee\nB. ant"}, ("text", "A. ant", "A. bee")),
        ({"question": f"{'Which? ' * 50}A"}, ("text", "Which? ")),
        ({"image": "y.jpg"}, ("image", "'x.jpg'", "'y.jpg'")),
        ({"asked": "1f"}, ("options or image", "'0f'", "'1f'")),
        ({"type": "count"}, ("type", "'color'", "'count'")),
        ({"facets": {"kind": "video"}}, ("kind", "'image'", "'video'")),
        ({"truth": "false"}, ("truth", "'true'", "'false'")),
        ({"question_id": "other"}, ("color1 is only in base",)),
    ],
)
def test_another_question_under_the_same_id_is_named(facts: dict[str, object], told: tuple[str, ...]) -> None:
    other = changed(ASKED, 1, **facts)
    with raises_code("different-questions", DataError) as error:
        compare([ComparedRun("base", ASKED), ComparedRun("other", other)])
    assert all(fact in str(error.value) for fact in ("question", "color1", *told))
    assert len(str(error.value)) < 400


def test_reordered_questions_pair_by_id() -> None:
    shuffled = replace(BETTER, verdicts=tuple(reversed(BETTER.verdicts)))
    in_order, reordered = (
        compare([ComparedRun("base", BASE), ComparedRun("tuned", tuned)]) for tuned in (BETTER, shuffled)
    )
    assert [row.differences for row in in_order] == [row.differences for row in reordered]


def test_questions_that_share_an_id_pair_by_their_text(tmp_path: Path) -> None:
    tiny = MAKERS["mme"](tmp_path)
    scores = benchmarks.get("mme").score(tmp_path, tiny.answers)
    shuffled = replace(scores, verdicts=tuple(reversed(scores.verdicts)))
    rows = compare([ComparedRun("base", scores), ComparedRun("same", shuffled)])
    assert {change.value for row in rows for change in row.differences if change} == {0.0}


def test_an_option_that_moved_in_one_rotation_is_another_question(tmp_path: Path) -> None:
    mmbench = benchmarks.get("mmbench")
    tiny = MAKERS["mmbench"](tmp_path)
    before = mmbench.score(tmp_path, tiny.answers)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    whole = path.read_text()
    for old, new in (("rain\tNone\tNA", "rain\tNA\tNone"), ("aW1n", "aW1u")):
        path.write_text(whole.replace(old, new))
        after = mmbench.score(tmp_path, tiny.answers)
        with raises_code("different-questions", DataError):
            compare([ComparedRun("base", before), ComparedRun("other", after)])
    head, *rows = whole.splitlines(keepends=True)
    path.write_text("".join([head, *reversed(rows)]))
    compare([ComparedRun("base", before), ComparedRun("same", mmbench.score(tmp_path, tiny.answers))])


def test_an_older_file_is_compared_on_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    older = changed(ASKED, 1, asked="", image=None)
    compare([ComparedRun("base", ASKED), ComparedRun("older", older, Path("older/metrics.json"))])
    assert [line.startswith("older/metrics.json: ") for line in caplog.messages] == [True, True]
    with raises_code("different-questions", DataError):
        compare([ComparedRun("base", ASKED), ComparedRun("older", changed(older, 1, question="What?"))])


def save(folder: Path, scores: Scores) -> Path:
    return write_scores(folder, scores)


def report(*args: object) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), "-m", "llava.report", *map(str, args)]
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


@pytest.mark.parametrize(
    ("part", "facts"),
    [
        ("verdicts", {"score": "1"}),
        ("verdicts", {"question_id": None}),
        ("verdicts", {"facets": [1]}),
        ("verdicts", {"status": "well"}),
        ("scores", {"value": "x"}),
        ("scores", {"n": True}),
        ("scores", {"over": "all"}),
        ("scores", {"units": [1.0]}),
        ("scores", {"units": {"a": None}}),
        ("scores", {"parts": ["gone"]}),
        ("scores", {"name": []}),
    ],
)
def test_a_file_with_values_of_other_types_is_refused(
    tmp_path: Path, part: str, facts: dict[str, object]
) -> None:
    path = save(tmp_path, BASE)
    value = json.loads(path.read_text())
    value[part][1] |= facts
    path.write_text(json.dumps(value))
    with raises_code("wrong-schema", DataError) as error:
        read_scores(path)
    assert str(path) in str(error.value)


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
