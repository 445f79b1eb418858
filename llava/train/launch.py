"""Start a training run: on one machine or several, by DeepSpeed's launcher, torchrun, or Python alone.

    python -m llava.train.launch STAGE FLAGS...      (scripts/v1_5/_train.sh does this and lists the settings)

The exit code is the run's own. If one process fails, the others are stopped, and the last line on stderr
names its rank and its error.
"""

from __future__ import annotations

from llava.train.flags import answer_help

if __name__ == "__main__":
    answer_help()  # at once; what follows takes seconds to import

import argparse
import importlib.util
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import psutil
import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers.hf_argparser import string_to_bool

from llava.command import ERROR_FILE, run
from llava.errors import LlavaError, SettingsError
from llava.train.checkpointing.signals import HANDLED_SIGNALS, available

REPO = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 29500  # torchrun's own default, so all machines agree on it without a setting
FORWARDED_SIGNALS = available("SIGINT", "SIGTERM", "SIGHUP")
_SAVE_TIMEOUT_S = 1800  # for processes that save before they exit; torchrun's default is 30 s


class LostProcessError(LlavaError):
    """One process of a run failed, so the others were stopped."""

    code = "process-failed"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has to train on."""

    gpus: int
    has_deepspeed: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a run.

    Attributes:
        launcher: What starts its processes.
        arguments: The launcher's own options, then the program and its flags.
        environment: Environment variables to set.
    """

    launcher: Literal["deepspeed", "torchrun", "python"]
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def plan_launch(stage: str, flags: Sequence[str], settings: Mapping[str, str], machine: Machine) -> Launch:
    """Choose the launcher and its arguments. Every launcher trains the same model.

    Args:
        stage: ZeRO stage of the script, 2 or 3; used where DeepSpeed is.
        flags: For llava/train/train_mem.py. They override the flags that this function adds.
        settings: Environment variables: NPROC, HOSTFILE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT,
            CUDA_VISIBLE_DEVICES.
        machine: What this machine has.

    Raises:
        SettingsError: A setting is wrong or missing, or two contradict each other.
    """
    program = [str(REPO / "llava" / "train" / "train_mem.py")]
    with_zero = [*program, "--deepspeed", str(REPO / "scripts" / f"zero{stage}.json"), *flags]
    if settings.get("HOSTFILE"):
        return Launch("deepspeed", _hostfile_arguments(settings, machine, with_zero))
    processes = _read_number(settings, "NPROC", machine.gpus or 1, minimum=1)
    if 0 < machine.gpus < processes:
        raise SettingsError(
            f"NPROC is {processes}, but there are {machine.gpus} visible GPUs", code="too-few-gpus"
        )
    asks_for_fsdp = any(flag.split("=")[0] == "--fsdp" for flag in flags)
    uses_zero = machine.gpus > 0 and machine.has_deepspeed and not asks_for_fsdp
    program = with_zero if uses_zero else [*program, *flags]
    nodes = _read_number(settings, "NNODES", 1, minimum=1)
    if nodes > 1:
        node = ["--nnodes", str(nodes), "--node_rank", _read_node_rank(settings, nodes)]
        master = _master_arguments(settings)
        # Gloo's default is the address of this machine's host name, which is often 127.0.0.1.
        interface = settings.get("GLOO_SOCKET_IFNAME") or _find_interface(settings["MASTER_ADDR"])
        return Launch(
            "torchrun",
            [*node, *master, "--nproc_per_node", str(processes), *program],
            {"GLOO_SOCKET_IFNAME": interface} if interface else {},
        )
    port = str(_read_number(settings, "MASTER_PORT", 0, minimum=0) or _find_free_port())
    if uses_zero:
        # Given --num_gpus, DeepSpeed takes the machine's first GPUs and ignores CUDA_VISIBLE_DEVICES.
        if visible := settings.get("CUDA_VISIBLE_DEVICES"):
            chosen = ",".join(visible.split(",")[:processes])
            return Launch("deepspeed", ["--master_port", port, *program], {"CUDA_VISIBLE_DEVICES": chosen})
        count = ["--num_gpus", str(processes)] if settings.get("NPROC") else []
        return Launch("deepspeed", ["--master_port", port, *count, *program])
    if processes > 1:
        return Launch("torchrun", ["--nproc_per_node", str(processes), "--master_port", port, *program])
    return Launch("python", program)


def _read_number(settings: Mapping[str, str], name: str, default: int, *, minimum: int) -> int:
    text = settings.get(name) or str(default)
    if not text.isdecimal() or int(text) < minimum:
        raise SettingsError(
            f"{name} is {text!r}: wanted a whole number of at least {minimum}", code="not-a-number"
        )
    return int(text)


def _require_setting(settings: Mapping[str, str], name: str, advice: str) -> str:
    if not settings.get(name):
        raise SettingsError(f"{name} is not set: {advice}", code="missing-setting")
    return settings[name]


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _master_arguments(settings: Mapping[str, str]) -> list[str]:
    advice = "give the name or address of machine 0, the same on all"
    address = _require_setting(settings, "MASTER_ADDR", advice)
    port = _read_number(settings, "MASTER_PORT", DEFAULT_PORT, minimum=1)
    return ["--master_addr", address, "--master_port", str(port)]


def _read_node_rank(settings: Mapping[str, str], nodes: int) -> str:
    _require_setting(settings, "NODE_RANK", f"give each machine its number, 0 to {nodes - 1}")
    rank = _read_number(settings, "NODE_RANK", 0, minimum=0)
    if rank >= nodes:
        raise SettingsError(
            f"NODE_RANK is {rank}, but the {nodes} machines are 0 to {nodes - 1}", code="unknown-node"
        )
    return str(rank)


def _find_interface(master: str) -> str | None:
    """Return the name of the network interface that reaches machine 0, or None if it is not found."""
    try:
        family, *_, address = socket.getaddrinfo(master, DEFAULT_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, but picks the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise SettingsError(
            f"MASTER_ADDR {master}: cannot be reached from here ({error.strerror})",
            code="unreachable-machine",
        ) from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None


def _hostfile_arguments(settings: Mapping[str, str], machine: Machine, program: list[str]) -> list[str]:
    """Return DeepSpeed's arguments for a host file: it starts the others by pdsh, or runs on each of them."""
    path = settings["HOSTFILE"]
    if settings.get("NNODES"):
        raise SettingsError("HOSTFILE and NNODES: choose one", code="contradicting-settings")
    if not machine.has_deepspeed:
        raise SettingsError(
            "HOSTFILE needs DeepSpeed, which is not installed; use NNODES instead", code="missing-package"
        )
    hosts = _count_hosts(path)
    arguments = ["--hostfile", path]
    if settings.get("NPROC"):
        arguments += ["--num_gpus", str(_read_number(settings, "NPROC", 1, minimum=1))]
    if settings.get("NODE_RANK"):
        arguments += ["--no_ssh", "--node_rank", _read_node_rank(settings, hosts)]
        return [*arguments, *_master_arguments(settings), *program]
    if settings.get("MASTER_ADDR"):
        arguments += _master_arguments(settings)
    else:
        port = _read_number(settings, "MASTER_PORT", DEFAULT_PORT, minimum=1)
        arguments += ["--master_port", str(port)]
    return [*arguments, *(map(_quote_for_pdsh, program) if hosts > 1 else program)]


def _quote_for_pdsh(word: str) -> str:
    """Quote a word for pdsh's shell. DeepSpeed itself quotes only spaces, and drops empty words."""
    return word if " " in word else shlex.quote(word)


def _count_hosts(path: str) -> int:
    # Without the file DeepSpeed would train on this machine alone.
    if not Path(path).is_file():
        raise SettingsError(f"HOSTFILE {path}: no such file", code="missing-file")
    from deepspeed.launcher.runner import fetch_hostfile

    try:
        return len(fetch_hostfile(path))
    except ValueError as error:
        raise SettingsError(
            f"HOSTFILE {path}: {error}; wanted a machine on each line, as `name slots=8`", code="bad-hostfile"
        ) from error


def start_run(launch: Launch) -> None:
    """Start a run and wait for its end.

    Raises:
        LostProcessError: A process failed; the message is its rank and its error.
        SystemExit: The run ended by a signal, or by an error that is already on stderr.
    """
    os.environ.update(launch.environment)
    # Slurm's --signal=USR1@300 comes before its time limit: a run then saves a checkpoint and exits.
    # DeepSpeed's launcher, or a run that has only just begun, must not die of it.
    for number in available("SIGUSR1"):
        signal.signal(number, signal.SIG_IGN)
    if launch.launcher == "python":
        python = shutil.which(os.environ.get("PYTHON") or sys.executable) or sys.executable
        # Replaces this process, so that a signal to the script reaches the run.
        os.execv(python, [python, *launch.arguments])
    with tempfile.TemporaryDirectory(prefix="llava-errors-") as folder:
        errors = Path(folder) / "errors"
        os.environ[ERROR_FILE] = str(errors)
        try:
            if launch.launcher == "torchrun":
                _run_torchrun(launch.arguments)
            else:
                _run_deepspeed(launch.arguments)
        except SystemExit as end:
            if end.code and errors.is_file():
                first, *others = errors.read_text(encoding="utf-8").splitlines()
                also = f" (and {len(others)} more failed)" if others else ""
                raise LostProcessError(first + also) from end
            raise


def _run_torchrun(arguments: list[str]) -> None:
    # torchrun forwards only the signals listed, and under nohup it would die of an ignored SIGHUP.
    forwarded = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    names = ",".join(number.name for number in (*forwarded, *available("SIGQUIT", "SIGUSR1")))
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", names)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVE_TIMEOUT_S))
    try:
        torchrun.main(arguments)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _exit_like(failure.exitcode, f"rank {rank}")


def _exit_like(code: int, process: str) -> NoReturn:
    """Exit with a failed process's code (negative: a signal's number). Name it if it printed no error."""
    if code < 0:
        name = signal.Signals(-code).name
        sys.stderr.write(f"error: {process} was ended by {name}; the others were stopped\n")
    elif code != 2 and code - 128 not in HANDLED_SIGNALS:
        sys.stderr.write(
            f"error: {process} failed with exit code {code}, see above; the others were stopped\n"
        )
    sys.exit(code if code > 0 else 128 - code)


def _run_deepspeed(arguments: list[str]) -> None:
    """Run DeepSpeed's launcher in a child process, and forward signals to this machine's ranks.

    They do not go to the launcher: it kills ranks that have not ended 30 s after a signal, maybe before they
    have saved. It has its own process group, so that a terminal's Ctrl-C does not reach it either.
    """
    launcher = multiprocessing.get_context("fork").Process(
        target=run, args=(partial(_deepspeed_main, arguments),)
    )
    launcher.start()
    for number in FORWARDED_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _forward_signal)
    launcher.join()
    if code := launcher.exitcode or 0:
        # A rank's negative code has passed through another process's exit, as a byte.
        _exit_like(code - 256 if code > 256 - signal.NSIG else code, "a process")


def _deepspeed_main(arguments: list[str]) -> None:
    from deepspeed.launcher import runner

    os.setpgid(0, 0)
    try:
        runner.main(arguments)
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"DeepSpeed's launcher: {error}", code="launcher-failed") from error


def _forward_signal(number: int, frame: FrameType | None) -> None:
    """Send a signal to the ranks on this machine; before there are any, to the launcher's processes."""
    (launcher,) = psutil.Process().children()
    starters = [child for child in launcher.children() if "deepspeed.launcher.launch" in child.cmdline()]
    ranks = [rank for starter in starters for rank in starter.children()]
    for process in ranks or [launcher, *launcher.children(recursive=True)]:
        process.send_signal(number)


def asks_for_plan(flags: Sequence[str]) -> bool:
    """Return whether `--dry_run` is on. The run itself refuses a value that is neither true nor false."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--dry_run", type=string_to_bool, nargs="?", const=True, default=False)
    try:
        return bool(parser.parse_known_args(flags)[0].dry_run)
    except argparse.ArgumentError:
        return True


def main() -> None:
    stage, *flags = sys.argv[1:]
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    if asks_for_plan(flags):  # one process, which starts nothing
        processes = int(os.environ.get("NPROC") or 0) * int(os.environ.get("NNODES") or 1)
        known = ["--gpus", str(processes)] if processes else []
        program = [str(REPO / "llava" / "train" / "train_mem.py")]
        zero = ["--deepspeed", str(REPO / "scripts" / f"zero{stage}.json")]
        start_run(Launch("python", [*program, *zero, *known, *flags]))
    machine = Machine(torch.cuda.device_count(), has_deepspeed)
    start_run(plan_launch(stage, flags, os.environ, machine))


if __name__ == "__main__":
    run(main)
