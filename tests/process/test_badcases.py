"""Test `llava report badcases`: pairing, pictures, and the page itself in a browser."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from llava import benchmarks
from llava.report import __main__ as report
from llava.report.badcases import Case, build_page
from llava.schema import Score, Scores, Verdict
from llava.scoring.metrics import write_scores
from support.benchmark_downloads import MAKERS
from support.browser import browser_page
from support.errors import raises_code

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u202e {{ 7*7 }} %%DATA%% ]]> &lt;b&gt;"
OPTIONS = "A. red\nB. green\nC. blue\nD. white\nAnswer with the option's letter."
Run = Callable[..., str]


def verdict(number: int, answer: str | None, truth: str = "A", **more: object) -> Verdict:
    kind = ("Scene Understanding", "Text Understanding")[number % 2]
    image = f"SEED-Bench-image/{number // 2}.jpg"
    text = f"Question {number}?\n{OPTIONS}"
    row = Verdict(number, kind, float(answer == truth), answer, truth, image=image, question=text)
    return replace(row, **more)  # type: ignore[arg-type]


def save(folder: Path, verdicts: Sequence[Verdict], benchmark: str = "seed") -> Path:
    value = 100 * sum(each.score for each in verdicts) / len(verdicts)
    score = Score("image", value, len(verdicts), over={})
    scores = Scores(benchmark, "image", (score,), tuple(verdicts), split="image")
    folder.mkdir(parents=True)
    write_scores(folder, scores)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs over eight questions about four images: 0 and 1 get wrong, 2 and 3 get right."""
    images = tmp_path / "eval/seed_bench/SEED-Bench-image"
    images.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (400, 300), (60 * number, 90, 20)).save(images / f"{number}.jpg")
    before = [verdict(n, "A" if n in (0, 1, 4) else "B") for n in range(7)] + [verdict(7, HOSTILE)]
    after = [verdict(n, "A" if n in (2, 3, 4) else "C") for n in range(7)]
    after.append(verdict(7, None, status="unanswered"))
    return save(tmp_path / "before", before), save(tmp_path / "after", list(reversed(after)))


@pytest.fixture
def badcases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return what it prints."""

    def run(*words: object) -> str:
        root = ("--eval-root", tmp_path / "eval", "--output", tmp_path / "page.html")
        monkeypatch.setattr(sys, "argv", ["llava report", "badcases", *map(str, (*words, *root))])
        report.main()
        return capsys.readouterr().out

    return run


def block(page: str, name: str) -> object:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_two_runs_are_paired_by_id(runs: tuple[Path, Path], badcases: Run, tmp_path: Path) -> None:
    told = badcases(*runs)
    assert "1 right -> right, 2 right -> wrong, 2 wrong -> right, 3 wrong -> wrong; 4 of 4 images" in told
    data = block((tmp_path / "page.html").read_text(), "data")
    assert isinstance(data, dict)
    assert data["runs"] == ["before", "after"]
    assert [row["change"] for row in data["cases"]][:4] == ["right -> wrong"] * 2 + ["wrong -> right"] * 2
    # Both questions about an image show the same picture, which the page holds once.
    assert [row["thumbnail"] for row in data["cases"][:4]] == [0, 0, 1, 1]
    assert data["cases"][7]["answers"][0]["text"] == HOSTILE


def test_pictures_are_limited_to_the_most_telling(
    runs: tuple[Path, Path], badcases: Run, tmp_path: Path
) -> None:
    assert "; 2 of 4 images;" in badcases(*runs, "--thumbnails", 2)
    data = block((tmp_path / "page.html").read_text(), "data")
    assert isinstance(data, dict)
    assert [row["thumbnail"] for row in data["cases"]] == [0, 0, 1, 1, -1, -1, -1, -1]


def test_images_that_cannot_be_read_are_counted(
    runs: tuple[Path, Path], badcases: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "eval/seed_bench/SEED-Bench-image"
    (images / "0.jpg").write_text("no image")
    (images / "1.jpg").unlink()
    logging.getLogger("llava").propagate = True
    assert "; 2 of 4 images;" in badcases(*runs)
    assert "seed: 2 images are left out" in caplog.text


def test_images_in_the_question_file_are_found(tmp_path: Path, badcases: Run) -> None:
    mmbench = benchmarks.get("mmbench")
    root = tmp_path / "eval" / mmbench.folder
    tiny = MAKERS["mmbench"](root)
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    (path,) = root.glob("*.tsv")
    path.write_text(path.read_text().replace("aW1n", base64.b64encode(stream.getvalue()).decode()))
    (tmp_path / "run").mkdir()
    write_scores(tmp_path / "run", mmbench.score(root, tiny.answers))
    assert "2 questions of run: 2 right; 2 of 2 images" in badcases(tmp_path / "run")


def test_runs_that_cannot_be_compared_are_refused(
    runs: tuple[Path, Path], badcases: Run, tmp_path: Path
) -> None:
    fewer = save(tmp_path / "fewer", [verdict(n, "A") for n in range(7)])
    other = save(tmp_path / "other", [verdict(n, "A") for n in range(8)], benchmark="gqa")
    unjudged = save(tmp_path / "unjudged", [verdict(0, "A", status="unjudged")])
    for code, words in {
        "different-questions": (runs[0], fewer),
        "no-common-benchmark": (runs[0], other),
        "unjudged": (unjudged,),
        "too-many-runs": (runs[0], runs[1], fewer),
        "two-runs": (tmp_path,),
        "out-of-range": (runs[0], "--thumbnails", -1),
        "missing-metrics": (tmp_path / "eval",),
    }.items():
        with raises_code(code):
            badcases(*words)
    assert not (tmp_path / "page.html").exists()


def test_nothing_of_a_model_reaches_the_html_parser() -> None:
    hostile = verdict(0, HOSTILE, question=HOSTILE, truth=HOSTILE, type=HOSTILE)
    case = Case("seed", (hostile,), ("seed", "", HOSTILE))
    page = build_page([HOSTILE], [case], {})
    assert page.lower().count("</script") == page.lower().count("<script") == 3
    assert "<img src=x" not in page
    assert "<!--" not in page


def test_the_page_in_a_browser(runs: tuple[Path, Path], badcases: Run, tmp_path: Path) -> None:
    badcases(*runs)
    with browser_page() as page:
        page.goto((tmp_path / "page.html").as_uri())
        assert page.inner_text("#count") == "7 of 8 questions"
        assert page.locator(".row").count() == 7
        assert page.evaluate("document.querySelector('.row img').naturalWidth") == 160
        page.keyboard.press("j")
        assert "Question 1?" in page.inner_text("#detail")
        assert "← right answer, before" in page.inner_text("#detail")
        page.keyboard.press("End")
        # The tags show, and the character that turns text around is spelled out.
        assert HOSTILE.replace("\u202e", "\\u202e") in page.inner_text("#detail")
        assert "(no answer)" in page.inner_text("#detail")
        assert page.locator("img[src='x']").count() == 0
        page.keyboard.press("/")
        page.keyboard.type("question 2?")
        assert page.inner_text("#count") == "1 of 8 questions"
        page.keyboard.press("Escape")
        page.keyboard.press("x")
        assert page.inner_text("#count") == "7 of 8 questions"
        page.select_option("#change", "wrong -> right")
        page.select_option("#type", "Text Understanding")
        assert page.inner_text("#count") == "1 of 8 questions"
        assert "Question 3?" in page.inner_text("#detail")
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        assert page.evaluate("document.activeElement.id") == "change"
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()


def test_the_changed_questions_of_two_runs_are_listed(
    runs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compare(*words: object) -> list[list[str]]:
        argv = ["llava report", "compare", *runs, *words, "--eval-root", tmp_path / "eval"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        report.main()
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    told = compare("--output", tmp_path / "page.html")
    assert ["seed:", "Scene", "Understanding", "4", "1", "1", "+0"] in told
    assert ["all", "8", "2", "2", "+0"] in told
    data = block((tmp_path / "page.html").read_text(), "data")
    assert isinstance(data, dict)
    assert [(row["id"], row["thumbnail"]) for row in data["cases"]] == [
        ("0", 0),
        ("1", 0),
        ("2", 1),
        ("3", 1),
    ]
    compare("--output", tmp_path / "list.md")
    text = (tmp_path / "list.md").read_text()
    assert re.findall(r"^## (.*): .* question (\d)$", text, re.M) == [
        ("right -> wrong", "0"),
        ("right -> wrong", "1"),
        ("wrong -> right", "2"),
        ("wrong -> right", "3"),
    ]
    with raises_code("unknown-format"):
        compare("--output", tmp_path / "list.pdf")


def test_the_results_page_in_a_browser(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    argv = ["llava report", "results", f"{HOSTILE}={runs[0]}", *runs[1:], "--out", tmp_path / "page.html"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
    report.main()
    with browser_page() as page:
        page.goto((tmp_path / "page.html").as_uri())
        assert page.text_content("tbody th") == HOSTILE.replace("\u202e", " ")
        assert page.locator("table").count() == 1
        assert page.evaluate("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"


def test_a_page_of_14000_questions_draws_only_what_is_in_view(tmp_path: Path) -> None:
    pairs = ((verdict(n, "AB"[n % 2]), verdict(n, "AAB"[n % 3])) for n in range(14_000))
    cases = [Case("seed", pair, ("seed", "image", "")) for pair in pairs]
    (tmp_path / "page.html").write_text(build_page(["one", "two"], cases, {}))
    with browser_page() as page:
        page.goto((tmp_path / "page.html").as_uri())
        page.select_option("#change", "")
        assert page.inner_text("#count") == "14,000 of 14,000 questions"
        page.keyboard.press("Escape")
        page.keyboard.press("End")
        assert page.locator(".row").count() < 40
        assert "Question 13999?" in page.inner_text(".row[aria-selected=true]")
        page.locator("#list").evaluate("list => list.scrollTop = 640000")
        page.locator(".row", has_text="Question 10000?").wait_for()
        assert page.locator(".row").count() < 40
