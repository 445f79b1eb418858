"""Every path, script, module, flag, setting and extra that a page or script names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from llava.cli import COMMANDS
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from support.warm_python import warm_python

REPO = Path(__file__).resolve().parents[2]
# Shell built-ins and other tools that users type.
FOREIGN = {
    "vllm",
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
    "conda",
    "docker",
    "jupyter",
    "source",
    "pre-commit",
    "python3",
    "python3.11",
}
OURS = {"python", "bash", "sbatch", "pip", "llava"}
# Variables that libraries or the package read, and flags of the programs above.
FOREIGN_SETTINGS = {
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "LLAVA_TRACEBACK",
    "HF_HUB_OFFLINE",
    "LLAVA_MIRRORS",
}
FOREIGN_FLAGS = {"--constraint", "--enable-scale-out", "--shm-size", "--volume"}
# Commands that scripts start; pages may name their flags.
BEHIND_SCRIPTS = (
    ("-m", "llava.benchmarks", "score"),
    ("-m", "llava.eval.model_vqa_loader"),
    ("playground/demo/generate.py",),
)
# Files that the user downloads or a run writes: pages name them, git does not keep them.
NOT_OURS = re.compile(r"^(checkpoints|playground/data|playground/demo/work|MODEL|~|http)|/NAME\b")


@cache
def tracked() -> set[str]:
    """Return every file that git keeps or would keep, and every folder that holds one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\n")
    return {str(parent) for name in files if name for parent in (Path(name), *Path(name).parents)}


# Every page; those under tests/data are outputs of the original.
DOCUMENTS = sorted(name for name in tracked() if name.endswith(".md") and not name.startswith("tests/data/"))


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page: the settings in front of it (`A=1 B=2 command`), and its words."""

    settings: tuple[str, ...]
    words: tuple[str, ...]


def command_of(line: str) -> Command:
    words = shlex.split(line, comments=True)
    count = next((index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return Command(tuple(word.split("=")[0] for word in words[:count]), tuple(words[count:]))


def blocks_and_spans(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of all ```bash blocks, and the code spans outside of blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return lines, re.findall(r"`([^`]+)`", prose)


def commands_in(text: str) -> Iterator[Command]:
    """Yield the commands of all blocks, and our own commands among the code spans."""
    lines, spans = blocks_and_spans(text)
    for command in map(command_of, [part for line in lines for part in line.split(" -- ")]):
        if command.words and command.words[0] != "export":
            yield command
    for span in spans:
        if re.match(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(OURS)}) ", span):
            yield command_of(span)


@cache
def help_text(*command: str) -> str:
    """Return what `FILE|-m MODULE [SUB-COMMAND...] --help` prints."""
    run = subprocess.run([warm_python(), *command, "--help"], cwd=REPO, capture_output=True, text=True)
    assert run.returncode == 0, f"{command}: {run.stderr}"
    return run.stdout


def flags_of(*command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[\w-]+", help_text(*command)))


def split_command(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Split `FILE|-m MODULE [SUB-COMMAND...] ARGUMENTS` into the command and its arguments."""
    count = 2 if words[0] == "-m" else 1
    command, rest = tuple(words[:count]), words[count:]
    while rest and re.fullmatch(r"[a-z]+", rest[0]) and rest[0] in help_text(*command):
        command, rest = (*command, rest[0]), rest[1:]
    return command, rest


def check_llava(words: list[str]) -> set[str]:
    """Check a `llava SUB-COMMAND --flags` line and return all flags that it takes."""
    if words and re.fullmatch(r"[a-z]+", words[0]):
        assert words[0] in COMMANDS, f"llava has no command {words[0]!r}"
    return check_python(["-m", "llava.cli", *words])


def check_python(words: list[str]) -> set[str]:
    """Check a `python FILE|-m MODULE [SUB-COMMAND] --flags` line and return all flags that it takes."""
    if words[0] == "-m" and not words[1].startswith("llava"):
        return set()
    if words[0] != "-m":
        assert words[0] in tracked(), f"{words[0]} is not in the repository"
    command, rest = split_command(words)
    known = flags_of(*command)
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{' '.join(command)} knows no {word}"
    return known


@cache
def training_parser() -> ArgumentParser:
    return HfArgumentParser([ModelArguments, DataArguments, TrainingArguments])


def training_flags() -> set[str]:
    return {f"--{action.dest}" for action in training_parser()._actions}


@cache
def with_sources(script: str) -> str:
    """Return the text of a script and of the scripts that it sources or executes."""
    path = REPO / script
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:source|exec bash) .*?/(\w+\.sh)", text, re.M):
        other = path.with_name(name) if path.with_name(name).exists() else REPO / "scripts" / name
        text += "\n" + with_sources(str(other.relative_to(REPO)))
    return text


def settings_of(script: str) -> set[str]:
    """Return the variables that a script's header and those it sources list: `#   NAME, NAME  what it is`."""
    rows = re.findall(
        r"^# +(?:Settings: +)?([A-Z][A-Z_]+(?:, [A-Z_]+)*)(?:=1)? {2,}\S", with_sources(script), re.M
    )
    return {name for row in rows for name in row.split(", ")}


def check_bash(words: list[str], settings: tuple[str, ...] = ()) -> None:
    """Check a `SETTING=... bash SCRIPT ARGUMENTS` line against the script's header and the parser's flags."""
    # `{seed,gqa}_lora.sh` stands for one script each.
    expanded = subprocess.run(["bash", "-c", f"echo {words[0]}"], capture_output=True, text=True)
    for name in expanded.stdout.split():
        assert name in tracked(), f"{name} is not in the repository"
        subprocess.run(["bash", "-n", name], cwd=REPO, check=True)
        unknown = set(settings) - settings_of(name) - FOREIGN_SETTINGS
        assert not unknown, f"{name} and what it sources document no setting {', '.join(sorted(unknown))}"
        first = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
        if flags := words[first:]:
            assert "llava.train.launch" in with_sources(name), f"{name} takes no flags: {' '.join(flags)}"
            wrong = {word.split("=")[0] for word in flags if word.startswith("--")} - training_flags()
            assert not wrong, f"{name}: training knows no {', '.join(sorted(wrong))}"
            try:
                training_parser().parse_args(flags)
            except SystemExit:
                pytest.fail(f"{name}: training does not take {' '.join(flags)}")


def check_sbatch(words: list[str]) -> None:
    """Check a `sbatch OPTIONS SLURM_SCRIPT SCRIPT FLAGS` line."""
    slurm, script = (index for index, word in enumerate(words) if word.endswith(".sh"))
    check_bash([words[slurm]])
    check_bash(words[script:])


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def check_document(text: str) -> None:
    """Check every command of a page, and every flag or setting that is a code span of its own."""
    flags = training_flags() | FOREIGN_FLAGS
    for command in commands_in(text):
        program, rest = command.words[0], list(command.words[1:])
        unknown = set(command.settings) - FOREIGN_SETTINGS
        assert program == "bash" or not unknown, f"what is {', '.join(sorted(unknown))}?"
        if program == "bash":
            check_bash(rest, command.settings)
        elif program == "sbatch":
            check_sbatch(rest)
        elif program == "python":
            flags |= check_python(rest)
        elif program == "pip":
            check_pip(rest)
        elif program == "llava":
            flags |= check_llava(rest)
        else:
            assert program in FOREIGN, f"what is {program!r}?"
    scripts = [name for name in tracked() if name.startswith("scripts/") and name.endswith(".sh")]
    settings = {setting for name in scripts for setting in settings_of(name)} | FOREIGN_SETTINGS
    for span in blocks_and_spans(text)[1]:
        if (flag := re.match(r"--[\w-]+", span)) and flag[0] not in flags:
            assert any(flag[0] in flags_of(*command) for command in BEHIND_SCRIPTS), (
                f"nothing knows {flag[0]}"
            )
        if setting := re.fullmatch(r"([A-Z_]+)=\S*", span):
            assert setting[1] in settings, f"no script documents {setting[1]}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_flag_and_setting_of_a_page_exists(document: str) -> None:
    check_document((REPO / document).read_text(encoding="utf-8"))


def test_the_pages_hold_enough_commands_to_check() -> None:
    counts = {name: len(list(commands_in((REPO / name).read_text(encoding="utf-8")))) for name in DOCUMENTS}
    assert counts["README.md"] >= 12
    assert sum(counts.values()) > 60


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pages_type_our_commands_one_way(document: str) -> None:
    modules = {module for module, _ in COMMANDS.values()}
    for command in commands_in((REPO / document).read_text(encoding="utf-8")):
        if command.words[:2] == ("python", "-m"):
            assert command.words[2] not in modules, f"{document}: type {command.words[2]} as `llava ...`"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bash scripts/v1_5/finetune_lora.sh --held_ou 0.01", "training knows no --held_ou"),
        ("bash scripts/v1_5/finetune_lora.sh --eval_steps 5 --held-out 0.01", "training knows no --held-out"),
        ("bash scripts/v1_5/finetune_lora.sh --max_steps many", "training does not take --max_steps many"),
        (
            "sbatch --nodes 2 scripts/v1_5/slurm.sh scripts/v1_5/finetune.sh --max_step 2",
            "knows no --max_step",
        ),
        (
            "bash scripts/v1_5/eval/pope.sh MODEL NAME --batch-size 2",
            "pope.sh takes no flags: --batch-size 2",
        ),
        ("INIT_ADAPTOR=a bash scripts/v1_5/finetune_lora.sh", "document no setting INIT_ADAPTOR"),
        ("MODEL_BASE=a bash scripts/v1_5/finetune_lora.sh", "document no setting MODEL_BASE"),
        (
            "NPROC=2 MODELBASE=a bash scripts/v1_5/eval/pope.sh MODEL NAME",
            "document no setting MODELBASE, NPROC",
        ),
        ("MODEL=a python -m llava.data_engine mix --base b", "what is MODEL"),
        ("python -m llava.data_engine mix --bas b", "llava.data_engine mix knows no --bas"),
        ("`python -m llava.data_engine mix --bas b`", "llava.data_engine mix knows no --bas"),
        ("`MODELBASE=a bash scripts/v1_5/eval/pope.sh MODEL NAME`", "document no setting MODELBASE"),
        ("llava engine mix --bas b", "engine mix knows no --bas"),
        ("llava benchmark list", "llava has no command 'benchmark'"),
        ("`--recipes fast`", "nothing knows --recipes"),
        ("`--allow-missin`", "nothing knows --allow-missin"),
        ("`SHARD=2`", "no script documents SHARD"),
    ],
)
def test_a_wrong_command_flag_or_setting_is_found(line: str, message: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        check_document(line if line.startswith("`") else f"```bash\n{line}\n```\n")


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_of_a_page_exists(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([\w-]+))?\)", text):
        path = (REPO / document).parent / target if target else REPO / document
        resolved = str(path.resolve().relative_to(REPO))
        assert resolved in tracked(), f"{document} links to {target}"
        if anchor:
            assert anchor in anchors((REPO / resolved).read_text(encoding="utf-8")), f"{document}: #{anchor}"
    for name in re.findall(r"`((?:llava|scripts|tests|playground|\.ci)/[\w./-]+)`", text):
        if not NOT_OURS.search(name):
            assert name.rstrip("/") in tracked(), f"{document} names {name}"


def test_the_readme_shows_the_quickstarts_recorded_results() -> None:
    results = (REPO / "playground/demo/RESULTS.md").read_text(encoding="utf-8")
    section = results[results.index("## The quickstart") :].split("\n## ")[0]
    rows = re.findall(r"^\| (?:\d|all)\b.*\|$", section, re.M)
    assert len(rows) == 10
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert [row for row in rows if row not in readme] == []


@pytest.mark.parametrize("fact", ["`--allow-missing`", "`answer_id`", "`<unk>`"])
def test_differences_from_the_original_are_documented(fact: str) -> None:
    assert fact in (REPO / "llava/DIFFERENCES.md").read_text(encoding="utf-8")


def test_ci_and_hooks_run_the_readmes_test_command() -> None:
    for name in ("README.md", ".ci/run", ".github/workflows/ci.yml"):
        assert "bash scripts/test.sh" in (REPO / name).read_text(encoding="utf-8"), name
    script = (REPO / "scripts/test.sh").read_text(encoding="utf-8")
    hooks = re.findall(r"entry: (.+)", (REPO / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert len(hooks) == 3
    for hook in hooks:
        assert re.search(rf"^ *{re.escape(hook)}$", script, re.M), f"scripts/test.sh does not run {hook}"


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
