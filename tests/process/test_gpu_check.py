"""The check of a GPU, rehearsed on the CPU: scripts/bench/gpu_check.sh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import gpu_check
from support.tiers import exhaustive

# A second machine takes no larger working tree.
MOST_BYTES = 64 * 2**20


def rehearse(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "scripts/bench/gpu_check.sh", *words]
    settings = {"REHEARSE": "1", "OUT": str(out), "PYTHON": sys.executable}
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_TEST_DATA"}
    return subprocess.run(
        command, cwd=gpu_check.REPO, env={**environment, **settings}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "part", ["device", *(exhaustive(name) for name in gpu_check.TITLES if name != "device")]
)
def test_a_part_runs_at_tiny_shapes_on_a_cpu(tmp_path: Path, part: str) -> None:
    done = rehearse(tmp_path, part)
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    checks = report[part]["checks"]
    assert not [check["error"] for check in checks if check["error"]], done.stderr
    assert done.returncode == 0
    assert report[part]["is_rehearsal"]
    assert part == "tests" or all(any(map(len, check["tables"])) for check in checks)
    page = (tmp_path / "gpu_check.md").read_text()
    assert f"## {gpu_check.TITLES[part]}\n" in page
    assert page.count(f"\n| {part} | ") == len(checks)
    assert "**failed:**" not in page
    assert str(tmp_path) not in page


def check(code: str) -> gpu_check.Check:
    return gpu_check.Check("A check", ("-c", code))


def test_a_part_that_fails_is_recorded_and_the_rest_still_runs(tmp_path: Path) -> None:
    checks = [
        check("import sys; print('| a |\\n| --- |\\n| 1 |'); sys.exit('broken')"),
        check("import os; os.abort()"),
        check("print('| a | b |\\n| --- | --- |\\n| 1 | - |')"),
        check(
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
        ),
        check("print('late')"),
    ]
    began = time.monotonic()
    rows = list(gpu_check.run_part(checks, tmp_path, 2.0))
    assert time.monotonic() - began < 30
    assert [(row["error"] or "").splitlines()[:1] for row in rows] == [
        ["exit code 1"],
        ["exit code -6"],
        [],
        ["stopped: the part's time was over"],
        ["not run: the part's time was over"],
    ]
    assert "broken" in rows[0]["error"]
    assert [row["tables"] for row in rows[:3]] == [[[{"a": "1"}]], [], [[{"a": "1", "b": "-"}]]]


def test_reports_of_several_calls_are_joined(tmp_path: Path) -> None:
    def part(*errors: str | None) -> dict[str, Any]:
        row = {"title": "A check", "command": "python x", "seconds": 1, "output": "said", "tables": []}
        checks = [{**row, "error": error} for error in errors]
        return {"date": "2026-11-28", "machine": {"gpu": "H100"}, "is_rehearsal": False, "checks": checks}

    files = [tmp_path / "one.json", tmp_path / "two.json"]
    files[0].write_text(json.dumps({"train": part("exit code 1\nbroken")}))
    files[1].write_text(json.dumps({"device": part(None)}))
    assert rehearse(tmp_path, "report", *map(str, files)).returncode == 0
    assert set(json.loads((tmp_path / "gpu_check.json").read_text())) == {"device", "train"}
    page = (tmp_path / "gpu_check.md").read_text()
    assert page.index(gpu_check.TITLES["device"]) < page.index(gpu_check.TITLES["train"])
    assert "**Failed:**\n\n    exit code 1\n    broken\n" in page
    assert "| train | A check | 1 | **failed:** exit code 1 |\n" in page
    assert "Not run: tests, eval, resume, limits.\n" in page
    assert "rehearsal" not in page


def test_an_unknown_part_is_a_users_error(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "speed")
    assert done.returncode == 2
    assert "no part 'speed'; there are: device, " in done.stderr


def test_the_working_tree_fits_a_small_machine(repo: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=repo, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [repo / name for name in names if name]
    assert sum(path.stat().st_size for path in files if path.exists()) < MOST_BYTES
