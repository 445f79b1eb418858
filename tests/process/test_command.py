"""Commands report users' errors on one line and exit with codes that scripts can rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = "from llava.command import run\nfrom llava.errors import DataError\n"


def run_python(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + body], capture_output=True, text=True, env=environment or None
    )


def test_a_users_error_is_one_line_and_exit_code_2() -> None:
    result = run_python("def main(): raise DataError('a.json:3: found 1,\\n wanted 2')\nrun(main)")
    assert (result.returncode, result.stderr) == (2, "error: a.json:3: found 1, wanted 2\n")


def test_a_missing_file_is_one_line_and_exit_code_2() -> None:
    result = run_python("run(lambda: open('gone/x'))")
    assert (result.returncode, result.stderr) == (2, "error: gone/x: No such file or directory\n")


def test_a_traceback_is_shown_on_request() -> None:
    result = run_python("def main(): raise DataError('no')\nrun(main)", LLAVA_TRACEBACK="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_bugs_keep_their_traceback() -> None:
    result = run_python("run(lambda: 1 / 0)")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_a_closed_pipe_is_quiet() -> None:
    body = "import sys\ndef main():\n  for i in range(100000): sys.stdout.write('x' * 80)\nrun(main)"
    command = f'{sys.executable} -c "$CODE" | head -c 10'
    result = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={"CODE": PRELUDE + body, "PATH": "/usr/bin:/bin"},
    )
    assert (result.stdout, result.stderr) == ("x" * 10, "")


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 0), (["nonsense"], 2)])
def test_the_llava_command_lists_its_subcommands(arguments: list[str], code: int) -> None:
    result = subprocess.run([sys.executable, "-m", "llava.cli", *arguments], capture_output=True, text=True)
    assert result.returncode == code
    assert "report" in result.stdout + result.stderr


def test_the_doctor_shows_versions() -> None:
    result = subprocess.run([sys.executable, "-m", "llava.cli", "doctor"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "transformers" in result.stdout
