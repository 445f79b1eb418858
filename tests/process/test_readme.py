"""What the documents and scripts promise exists: paths, scripts, modules, flags, settings, extras."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

REPO = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "playground/data/README.md",
    "playground/demo/README.md",
    "scripts/bench/README.md",
    "scripts/v1_5/README.md",
]
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
    "conda",
}
OURS = {"python", "bash", "sbatch", "pip", "llava"}
# Variables that libraries read, and flags of the programs above.
FOREIGN_SETTINGS = {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
FOREIGN_FLAGS = {"--constraint"}
# Commands that scripts start, and whose flags the text therefore also speaks of.
BEHIND_SCRIPTS = (
    ("-m", "llava.benchmarks", "score"),
    ("-m", "llava.eval.model_vqa_loader"),
)
# Files that the user downloads or a run writes, named in the documents but not kept in git.
NOT_OURS = re.compile(r"^(checkpoints|playground/data|playground/demo/work|MODEL|~|http)")


@cache
def tracked() -> set[str]:
    """Every file git keeps (or would keep), and every folder above one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\n")
    return {str(parent) for name in files if name for parent in (Path(name), *Path(name).parents)}


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a document: the settings in front of it (`A=1 B=2 command`), and its words."""

    settings: tuple[str, ...]
    words: tuple[str, ...]


def command_of(line: str) -> Command:
    words = shlex.split(line, comments=True)
    count = next((place for place, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return Command(tuple(word.split("=")[0] for word in words[:count]), tuple(words[count:]))


def blocks_and_spans(text: str) -> tuple[list[str], list[str]]:
    """The lines of all ```bash blocks, and what stands between single backticks outside of any block."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return lines, re.findall(r"`([^`]+)`", prose)


def commands_in(text: str) -> Iterator[Command]:
    """The commands of all blocks, and those among the text that are ours."""
    lines, spans = blocks_and_spans(text)
    for command in map(command_of, lines):
        if command.words and command.words[0] != "export":
            yield command
    for span in spans:
        if re.match(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(OURS)}) ", span):
            yield command_of(span)


@cache
def help_text(*command: str) -> str:
    result = subprocess.run([sys.executable, *command, "--help"], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def flags_of(*command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[\w-]+", help_text(*command)))


def split_command(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """`python FILE|-m MODULE [SUB-COMMAND]` without its python, and the words behind that."""
    count = 2 if words[0] == "-m" else 1
    command, rest = tuple(words[:count]), words[count:]
    if rest and rest[0] in help_text(*command) and rest[0].isalpha():
        return (*command, rest[0]), rest[1:]
    return command, rest


def check_python(words: list[str]) -> set[str]:
    """All flags that a `python FILE|-m MODULE [SUB-COMMAND] --flags` line could have; it has no others."""
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
    """The text of a script and of those that it sources or hands over to."""
    path = REPO / script
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:source|exec bash) .*?/(\w+\.sh)", text, re.M):
        other = path.with_name(name) if path.with_name(name).exists() else REPO / "scripts" / name
        text += "\n" + with_sources(str(other.relative_to(REPO)))
    return text


def settings_of(script: str) -> set[str]:
    """The variables that the headers of a script and its sources list: `#   NAME, NAME  what it is`."""
    rows = re.findall(
        r"^# +(?:Settings: +)?([A-Z][A-Z_]+(?:, [A-Z_]+)*)(?:=1)? {2,}\S", with_sources(script), re.M
    )
    return {name for row in rows for name in row.split(", ")}


def check_bash(words: list[str], settings: tuple[str, ...] = ()) -> None:
    """A `SETTING=... bash SCRIPT ARGUMENTS` line: of its headers' settings, and with its parser's flags."""
    # `{seed,gqa}_lora.sh` stands for one script each.
    expanded = subprocess.run(["bash", "-c", f"echo {words[0]}"], capture_output=True, text=True)
    for name in expanded.stdout.split():
        assert name in tracked(), f"{name} is not in the repository"
        subprocess.run(["bash", "-n", name], cwd=REPO, check=True)
        unknown = set(settings) - settings_of(name) - FOREIGN_SETTINGS
        assert not unknown, f"{name} and what it sources document no setting {', '.join(sorted(unknown))}"
        place = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
        if flags := words[place:]:
            assert "llava.train.launch" in with_sources(name), f"{name} takes no flags: {' '.join(flags)}"
            wrong = {word.split("=")[0] for word in flags if word.startswith("--")} - training_flags()
            assert not wrong, f"{name}: training knows no {', '.join(sorted(wrong))}"
            try:
                training_parser().parse_args(flags)
            except SystemExit:
                pytest.fail(f"{name}: training does not take {' '.join(flags)}")


def check_sbatch(words: list[str]) -> None:
    """A `sbatch OPTIONS SLURM_SCRIPT SCRIPT FLAGS` line."""
    slurm, script = (place for place, word in enumerate(words) if word.endswith(".sh"))
    check_bash([words[slurm]])
    check_bash(words[script:])


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def check_document(text: str) -> None:
    """Every command, and every flag or setting that stands alone in the text, is one that there is."""
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
            flags |= check_python(["-m", "llava.cli", *rest])
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
def test_every_command_flag_and_setting_in_the_documents_is_real(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    assert document != "README.md" or len(list(commands_in(text))) > 20
    check_document(text)


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
        ("`--recipes fast`", "nothing knows --recipes"),
        ("`--allow-missin`", "nothing knows --allow-missin"),
        ("`SHARD=2`", "no script documents SHARD"),
    ],
)
def test_a_wrong_flag_or_setting_in_a_document_is_found(line: str, message: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        check_document(line if line.startswith("`") else f"```bash\n{line}\n```\n")


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


@pytest.mark.parametrize("said", ["`--allow-missing`", "`answer_id`", "`<unk>` is attended to"])
def test_deviations_from_the_original_are_said(said: str) -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    differences = text[text.index("What is different from the original") :].split("\n\n")[0]
    assert said in differences.replace("\n", " ")


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
