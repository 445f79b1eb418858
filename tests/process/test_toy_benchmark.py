"""A benchmark of one's own: one file in a folder, found by every command and held to the same contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.files import read_json
from support.canned_answers import canned_python

TOY = Path(__file__).parents[1] / "support/toy_benchmarks/street.py"
FLAGS = ["--model-path", "org/7b", "--name", "7b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of benchmarks that holds the toy alone, with its example as the download."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "street.py").write_text(TOY.read_text())
    example = "from llava import benchmarks; from pathlib import Path; import sys\n"
    example += "(root := Path(sys.argv[1])).mkdir(parents=True); benchmarks.get('street').example(root)"
    assert run(tasks, sys.executable, "-c", example, tmp_path / "eval/street").returncode == 0
    return tasks


def run(tasks: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLAVA_BENCHMARKS": str(tasks)}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)


def evaluate(tasks: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    python = canned_python(tasks.parent)
    root = ["--eval-root", str(tasks.parent / "eval")]
    return run(tasks, python, "-m", "llava.eval", name, *FLAGS, *root, *flags)


def test_a_benchmark_is_one_short_file() -> None:
    assert len(TOY.read_text().splitlines()) < 70


@pytest.mark.parametrize("name", ["street", "all"])
def test_llava_eval_goes_from_its_download_to_scores_and_submission(folder: Path, name: str) -> None:
    result = evaluate(folder, name)
    assert result.returncode == 0, result.stderr
    root = folder.parent / "eval/street"
    metrics = read_json(root / "answers/7b/metrics.json")
    assert [s["value"] for s in metrics["scores"] if s["name"] == "accuracy"] == [50.0]
    assert (root / "answers_upload/7b.jsonl").read_text().count('"sign": "A"') == 2
    assert "llava_street.jsonl: 2 questions" in result.stdout


def test_a_limited_run_says_so_wherever_its_score_goes(folder: Path) -> None:
    result = evaluate(folder, "street", "--limit", "1")
    assert result.returncode == 0, result.stderr
    root = folder.parent / "eval/street"
    metrics = read_json(root / "answers/7b-limit1/metrics.json")
    assert [(s["n"], s["of"]) for s in metrics["scores"] if s["name"] == "accuracy"] == [(1, 2)]
    assert "--limit" in " ".join(metrics["notes"])
    assert "1 of 2" in result.stdout
    assert not (root / "answers_upload").exists()
    report = run(folder, sys.executable, "-m", "llava.report", root / "answers/7b-limit1")
    assert "1 of 2" in report.stdout
    assert "--limit" in report.stdout
    # A judge that counts what was not asked gives no score.
    path = folder / "street.py"
    pairs = "matched.pairs(zip(questions, _records(task.root), strict=True))"
    every = "zip(zip(questions, _records(task.root)), matched.answers)"
    path.write_text(path.read_text().replace(pairs, every))
    result = evaluate(folder, "street", "--limit", "1", "--steps", "score")
    assert result.returncode == 2
    assert "Matched.pairs" in result.stderr


def test_it_is_listed_and_in_the_readme_table(folder: Path) -> None:
    listed = run(folder, sys.executable, "-m", "llava.benchmarks", "list")
    assert "street" in listed.stdout
    table = run(folder, sys.executable, "-m", "llava.benchmarks", "list", "--markdown")
    assert "| Street | `street` | in `street/`: `signs.json`, `images/*` |" in table.stdout


def test_it_is_held_to_the_contract(folder: Path) -> None:
    tests = str(Path(__file__).parent / "test_benchmarks.py")
    result = run(folder, sys.executable, "-m", "pytest", "-q", tests, "-k", "TestContract and street")
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


@pytest.mark.parametrize(
    ("code", "typo", "step"),
    [
        ('row["image"], row["kind"])', 'row["image"], split.categry)', "prepare"),
        ("question.id, question.category", "question.id, question.categry", "score"),
        ('"id": answer.question_id', '"id": answer.questoin_id', "submit"),
    ],
    ids=["build", "judge", "submit"],
)
def test_a_typo_in_its_code_is_a_bug_in_its_file(folder: Path, code: str, typo: str, step: str) -> None:
    if step != "prepare":
        assert evaluate(folder, "street", "--steps", "prepare,answer,merge").returncode == 0
    path = folder / "street.py"
    assert code in path.read_text()
    path.write_text(path.read_text().replace(code, typo))
    result = evaluate(folder, "street", "--steps", step)
    assert result.returncode == 1
    assert "AttributeError: " in result.stderr
    assert str(path) in result.stderr


def test_a_record_without_a_key_is_the_datas_fault(folder: Path) -> None:
    signs = folder.parent / "eval/street/signs.json"
    signs.write_text(signs.read_text().replace('"kind"', '"sort"'))
    result = evaluate(folder, "street", "--steps", "prepare")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {signs}")
    assert "'kind'" in result.stderr
