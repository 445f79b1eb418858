"""The environment that the two commands make: old interpreters, broken installs, and the tested versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement

from support.training_processes import free_port

REPO = Path(__file__).resolve().parents[2]


def fake(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def use_environment(**settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    command = ["bash", "-c", "set -euo pipefail; source scripts/_environment.sh; use_environment notebook"]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, env={**kept, **settings})


@pytest.mark.parametrize("script", ["scripts/quickstart.sh", "scripts/test.sh"])
def test_an_older_python_gets_one_line(tmp_path: Path, script: str) -> None:
    old = fake(tmp_path, "python3", 'if [ "$1" = -V ]; then echo "Python 3.9.2"; else exit 1; fi')
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    result = subprocess.run(
        ["bash", script], cwd=REPO, capture_output=True, text=True, env={**kept, "PYTHON": str(old)}
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "is Python 3.9.2; LLaVA needs Python 3.11 or newer" in result.stderr


def test_a_missing_python_gets_one_line() -> None:
    result = use_environment(PYTHON="/nowhere/python3")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "/nowhere/python3: not found" in result.stderr


def test_a_failed_installation_is_not_taken_for_done(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    # Everything an interpreter is asked for works, except pip.
    body = f'case "$*" in *pip*) echo "no network" >&2; exit 1;; *) exec {sys.executable} "$@";; esac'
    fake(tmp_path / "bin", "python", body)
    for _ in range(2):
        result = use_environment(VIRTUAL_ENV=str(tmp_path))
        assert result.returncode == 2
        assert "the installation failed" in result.stderr


def test_a_finished_installation_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    body = f'case "$*" in *pip*) echo installed >> {tmp_path}/log;; *) exec {sys.executable} "$@";; esac'
    fake(tmp_path / "bin", "python", body)
    first, second = use_environment(VIRTUAL_ENV=str(tmp_path)), use_environment(VIRTUAL_ENV=str(tmp_path))
    assert "installing [notebook]" in first.stdout
    assert "is installed already, used as it is" in second.stdout
    assert (tmp_path / "log").read_text(encoding="utf-8") == "installed\n"


def test_every_dependency_is_pinned_to_a_version_within_its_range() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPO / "scripts/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for text in (text for group in groups for text in group):
        requirement = Requirement(text)
        if requirement.name != "llava":
            name = requirement.name.lower().replace("_", "-")
            assert name in pins, f"{name} has no tested version"
            assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is outside {text}"


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed")
    subprocess.run([hadolint, "scripts/Dockerfile"], cwd=REPO, check=True)


@pytest.mark.exhaustive
def test_the_image_builds_and_its_doctor_finds_everything() -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon can be reached")
    build = ["docker", "build", "--quiet", "--file", "scripts/Dockerfile", "."]
    image = subprocess.run(build, cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()
    doctor = subprocess.run(["docker", "run", "--rm", image], capture_output=True, text=True, check=True)
    assert "MISSING" not in doctor.stdout


def test_jupyterlab_opens_the_notebook(tmp_path: Path) -> None:
    pytest.importorskip("jupyterlab")
    port = free_port()
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=secret"]
    command = [sys.executable, "-m", "jupyterlab", "playground/data/process_engine_data.ipynb", *options]
    folders = {
        name: str(tmp_path) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    with subprocess.Popen(
        command, cwd=REPO, env={**os.environ, **folders}, stderr=subprocess.DEVNULL
    ) as server:
        try:
            where = f"http://127.0.0.1:{port}/api/contents/process_engine_data.ipynb?token=secret"
            notebook = wait_for_answer(where, server).json()["content"]
        finally:
            server.terminate()
    assert any("convert" in "".join(cell["source"]) for cell in notebook["cells"])


def wait_for_answer(url: str, server: subprocess.Popen[bytes]) -> requests.Response:
    """Ask until the server answers; its start takes some seconds."""
    while True:
        assert server.poll() is None
        try:
            response = requests.get(url, timeout=60)
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            assert response.status_code == 200, response.text
            return response
