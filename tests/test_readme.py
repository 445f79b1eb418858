"""What the documents and scripts promise exists: every path, script, module, flag and extra they name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "playground/data/README.md", "playground/demo/README.md", "scripts/v1_5/README.md"]
# What users type that is not ours: the shell's own words and the tools that fetch and unpack downloads.
FOREIGN = {
    "cd",
    "git",
    "mkdir",
    "ln",
    "wget",
    "curl",
    "unzip",
    "tar",
    "mv",
    "hf",
    "sbatch",
    "conda",
}
# Files that the user downloads or a run writes, named in the documents but not kept in git.
NOT_OURS = re.compile(r"^(checkpoints|playground/data|playground/demo/work|MODEL|~|http)")


@cache
def tracked() -> set[str]:
    """Every file git keeps (or would keep), and every folder above one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\n")
    return {str(parent) for name in files if name for parent in (Path(name), *Path(name).parents)}


def shell_commands(document: str) -> list[list[str]]:
    """The commands of all ```bash blocks, with settings in front (`A=1 B=2 command`) taken off."""
    text = (REPO / document).read_text(encoding="utf-8")
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words = words[1:]
            if words and words[0] != "export":
                commands.append(words)
    return commands


@cache
def help_text(*command: str) -> str:
    result = subprocess.run([sys.executable, *command, "--help"], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def check_python(words: list[str]) -> None:
    """A `python FILE|-m MODULE [SUB-COMMAND] --flags` line: the command's own help must know all of it."""
    command = words[:2] if words[0] == "-m" else words[:1]
    rest = words[len(command) :]
    if command[0] == "-m" and not command[1].startswith("llava"):
        return
    if command[0] != "-m":
        assert command[0] in tracked(), f"{command[0]} is not in the repository"
    subcommand = [rest[0]] if rest and rest[0] in help_text(*command) and rest[0].isalpha() else []
    known = help_text(*command, *subcommand)
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{' '.join(command)} knows no {word}"


def check_bash(words: list[str]) -> None:
    script = words[0]
    # `{seed,gqa}_lora.sh` stands for one script each.
    for name in subprocess.run(
        ["bash", "-c", f"echo {script}"], capture_output=True, text=True
    ).stdout.split():
        assert name in tracked(), f"{name} is not in the repository"
        subprocess.run(["bash", "-n", name], cwd=REPO, check=True)


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_the_documents_is_real(document: str) -> None:
    commands = shell_commands(document)
    assert commands or document != "README.md"
    for words in commands:
        program, rest = words[0], words[1:]
        if program == "python":
            check_python(rest)
        elif program == "bash":
            check_bash(rest)
        elif program == "pip":
            check_pip(rest)
        elif program == "llava":
            check_python(["-m", "llava.cli", *rest])
        else:
            assert program in FOREIGN, f"{document}: what is {program!r}?"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_the_documents_exists(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    folder = Path(document).parent
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")]
    for target in links:
        resolved = (REPO / folder / target).resolve().relative_to(REPO)
        assert str(resolved) in tracked(), f"{document} links to {target}"
    for name in re.findall(r"`((?:llava|scripts|tests|playground|\.ci)/[\w./-]+)`", text):
        if not NOT_OURS.match(name):
            assert name.rstrip("/") in tracked(), f"{document} names {name}"


def test_every_file_a_script_names_exists() -> None:
    scripts = [name for name in tracked() if name.endswith(".sh") or name == ".ci/run"]
    assert len(scripts) > 10
    for script in scripts:
        text = (REPO / script).read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/$}])((?:llava|scripts)/[\w/.-]+\.(?:py|sh|json|txt))", text):
            assert name in tracked(), f"{script} names {name}"
        for module in re.findall(r"-m (llava[\w.]+)", text):
            path = module.replace(".", "/")
            assert {f"{path}.py", f"{path}/__main__.py"} & tracked(), f"{script} runs {module}"
