"""Start a run: on one machine or several, by DeepSpeed's launcher, torchrun, or Python alone.

    python -m llava.train.launch STAGE FLAGS...      as scripts/v1_5/_train.sh does, which lists the settings

The exit code is the run's own. If one of several processes fails, all end; the last line says which and why.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
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
from typing import Any, Literal, NoReturn

import psutil
import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from llava.command import ERROR_FILE, run
from llava.errors import LlavaError, SettingsError
from llava.train.checkpointing.signals import HANDLED_SIGNALS

REPO = Path(__file__).resolve().parents[2]
MEETING_PORT = 29500  # torchrun's own default: the same on all machines without being told
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAVING_S = 1800  # torchrun's patience with processes that save before they leave; its own is 30 s


class LostProcessError(LlavaError):
    """One of a run's processes failed; so the others were ended."""


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine has to train on."""

    gpus: int
    has_deepspeed: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """How a run is started: by what, and with which words (the launcher's own, the program, its flags)."""

    by: Literal["deepspeed", "torchrun", "python"]
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)  # variables that are to be other than now


def plan(stage: str, flags: Sequence[str], settings: Mapping[str, str], here: Here) -> Launch:
    """How to start a run with these settings on this machine. What is learned is the same in each way.

    Args:
        stage: ZeRO stage of the recipe, used where DeepSpeed is: 2 or 3.
        flags: For llava/train/train_mem.py; they win over those given here.
        settings: Environment variables: NPROC, HOSTFILE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT,
            CUDA_VISIBLE_DEVICES.
        here: What there is on this machine.

    Raises:
        SettingsError: Settings are wrong, contradict each other, or one is missing.
    """
    program = [str(REPO / "llava" / "train" / "train_mem.py")]
    with_zero = [*program, "--deepspeed", str(REPO / "scripts" / f"zero{stage}.json"), *flags]
    if settings.get("HOSTFILE"):
        return Launch("deepspeed", _by_hostfile(settings, here, with_zero))
    processes = _number(settings, "NPROC", here.gpus or 1, least=1)
    if 0 < here.gpus < processes:
        raise SettingsError(f"NPROC is {processes}, but there are {here.gpus} visible GPUs")
    uses_zero = here.gpus > 0 and here.has_deepspeed
    words = with_zero if uses_zero else [*program, *flags]
    machines = _number(settings, "NNODES", 1, least=1)
    if machines > 1:
        number = ["--nnodes", str(machines), "--node_rank", _node_rank(settings, machines)]
        meeting = _meeting_place(settings)
        words = [*number, *meeting, "--nproc_per_node", str(processes), *words]
        # Gloo else takes the address that this machine's own name has, which is often 127.0.0.1.
        interface = settings.get("GLOO_SOCKET_IFNAME") or _interface(settings["MASTER_ADDR"])
        return Launch("torchrun", words, {"GLOO_SOCKET_IFNAME": interface} if interface else {})
    port = str(_number(settings, "MASTER_PORT", 0, least=0) or _free_port())
    if uses_zero:
        # Given a number, DeepSpeed takes the machine's first GPUs, whichever are visible.
        visible = settings.get("CUDA_VISIBLE_DEVICES")
        if visible:
            chosen = ",".join(visible.split(",")[:processes])
            return Launch("deepspeed", ["--master_port", port, *words], {"CUDA_VISIBLE_DEVICES": chosen})
        number = ["--num_gpus", str(processes)] if settings.get("NPROC") else []
        return Launch("deepspeed", ["--master_port", port, *number, *words])
    if processes > 1:
        return Launch("torchrun", ["--nproc_per_node", str(processes), "--master_port", port, *words])
    return Launch("python", words)


def _number(settings: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    said = settings.get(name) or str(default)
    if not said.isdecimal() or int(said) < least:
        raise SettingsError(f"{name} is {said!r}: wanted a whole number of at least {least}")
    return int(said)


def _required(settings: Mapping[str, str], name: str, what: str) -> str:
    if not settings.get(name):
        raise SettingsError(f"{name} is not set: {what}")
    return settings[name]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _meeting_place(settings: Mapping[str, str]) -> list[str]:
    address = _required(settings, "MASTER_ADDR", "give the name or address of machine 0, the same on all")
    port = _number(settings, "MASTER_PORT", MEETING_PORT, least=1)
    return ["--master_addr", address, "--master_port", str(port)]


def _node_rank(settings: Mapping[str, str], machines: int) -> str:
    _required(settings, "NODE_RANK", f"give each machine its number, 0 to {machines - 1}")
    rank = _number(settings, "NODE_RANK", 0, least=0)
    if rank >= machines:
        raise SettingsError(f"NODE_RANK is {rank}, but the {machines} machines are 0 to {machines - 1}")
    return str(rank)


def _interface(master: str) -> str | None:
    """The name of the network interface by which this machine reaches machine 0, if it is found."""
    try:
        family, *_, address = socket.getaddrinfo(master, MEETING_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as towards:
            towards.connect(address)  # sends nothing, but chooses the way
            own = towards.getsockname()[0]
    except OSError as error:
        raise SettingsError(
            f"MASTER_ADDR {master}: cannot be reached from here ({error.strerror})"
        ) from error
    addresses = {each.address: name for name, all_of in psutil.net_if_addrs().items() for each in all_of}
    return addresses.get(own)


def _by_hostfile(settings: Mapping[str, str], here: Here, program: list[str]) -> list[str]:
    """DeepSpeed's words for a host file: it reaches the others by pdsh, or is started on each of them."""
    path = Path(settings["HOSTFILE"])
    hosts = _hosts(path)
    if settings.get("NNODES"):
        raise SettingsError("HOSTFILE and NNODES: choose one")
    if not here.has_deepspeed:
        raise SettingsError("HOSTFILE needs DeepSpeed, which is not installed; NNODES does without")
    words = ["--hostfile", str(path)]
    if settings.get("NPROC"):
        words += ["--num_gpus", str(_number(settings, "NPROC", 1, least=1))]
    if settings.get("NODE_RANK"):
        words += ["--no_ssh", "--node_rank", _node_rank(settings, len(hosts))]
        return [*words, *_meeting_place(settings), *program]
    for tool in ("ssh", "pdsh") if len(hosts) > 1 else ("ssh",):
        if shutil.which(tool, path=settings.get("PATH")) is None:
            raise SettingsError(
                f"HOSTFILE needs {tool}, which is not installed; or set NODE_RANK and MASTER_ADDR too, and "
                "start the same command on every machine"
            )
    if settings.get("MASTER_ADDR"):
        words += _meeting_place(settings)
    else:
        words += ["--master_port", str(_number(settings, "MASTER_PORT", MEETING_PORT, least=1))]
    return [*words, *(map(_for_pdsh, program) if len(hosts) > 1 else program)]


def _for_pdsh(word: str) -> str:
    """Quoted for the shell that pdsh gives it to: DeepSpeed does so for spaces, and loses what is empty."""
    return word if " " in word else shlex.quote(word)


def _hosts(path: Path) -> list[str]:
    """The machines of a host file, one line each: `name slots=8`. Without one DeepSpeed trains here alone."""
    if not path.is_file():
        raise SettingsError(f"HOSTFILE {path}: no such file")
    hosts: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        said = line.strip()
        if not said or said.startswith("#"):
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)(\s+#.*)?", said)
        if match is None:
            raise SettingsError(f"HOSTFILE {path}:{number}: {said!r}: wanted a machine as `name slots=8`")
        if match[1] in hosts:
            raise SettingsError(f"HOSTFILE {path}:{number}: {match[1]} is there twice")
        hosts.append(match[1])
    if not hosts:
        raise SettingsError(f"HOSTFILE {path}: names no machine; wanted lines as `name slots=8`")
    return hosts


def start(launch: Launch) -> None:
    """Start it, and come back when it is done.

    Raises:
        LostProcessError: A process failed; the message is its rank and its own error.
        SystemExit: The run ended by a signal, or by an error that is told above.
    """
    os.environ.update(launch.environment)
    # Slurm's --signal=USR1@300 comes before its time limit. A run saves a checkpoint for it and leaves; what
    # does not know it (DeepSpeed's launcher, or a run that has just begun) must not die of it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if launch.by == "python":
        # In our place: a signal to the script is one to the run.
        os.execv(_python(), [_python(), *launch.words])
    with tempfile.TemporaryDirectory(prefix="llava-errors-") as folder:
        told = Path(folder) / "errors"
        os.environ[ERROR_FILE] = str(told)
        try:
            if launch.by == "torchrun":
                _by_torchrun(launch.words)
            else:
                _by_deepspeed(launch.words)
        except SystemExit as end:
            if end.code and told.is_file():
                first, *others = told.read_text(encoding="utf-8").splitlines()
                also = f" (and {len(others)} more failed)" if others else ""
                raise LostProcessError(first + also) from end
            raise


def _by_torchrun(words: list[str]) -> None:
    # It passes on only those listed; and under nohup it would die of a SIGHUP that is none of its business.
    passed = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    names = ",".join(signal.Signals(number).name for number in (*passed, signal.SIGQUIT, signal.SIGUSR1))
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", names)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_S))
    try:
        torchrun.main(words)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _leave(failure.exitcode, f"rank {rank}")


def _leave(code: int, who: str) -> NoReturn:
    """End with a failed process's exit code; negative is a signal's number. Say so if it could not itself."""
    if code < 0:
        sys.stderr.write(f"error: {who} was ended by {signal.Signals(-code).name}; the others were stopped\n")
    elif code != 2 and code - 128 not in HANDLED_SIGNALS:
        sys.stderr.write(f"error: {who} failed with exit code {code}, see above; the others were stopped\n")
    sys.exit(code if code > 0 else 128 - code)


def _by_deepspeed(words: list[str]) -> None:
    """Its launcher kills processes that have not ended 30 s after a signal, which may be too soon to save.

    So it runs in a process group of its own, out of the terminal's reach, and signals go to the run itself.
    """
    launcher = multiprocessing.get_context("fork").Process(
        target=run, args=(partial(_deepspeed_main, words),)
    )
    launcher.start()
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _tell_run)
    launcher.join()
    code = launcher.exitcode or 0
    if code:
        # A process's negative code comes through another process's exit: as a byte.
        _leave(code - 256 if code > 256 - signal.NSIG else code, "a process")


def _deepspeed_main(words: list[str]) -> None:
    from deepspeed.launcher import runner

    os.setpgid(0, 0)
    try:
        runner.main(words)
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"DeepSpeed's launcher: {error}") from error


def _tell_run(number: int, frame: Any) -> None:
    """Pass a signal to the run's processes on this machine; else to what starts them, here or elsewhere."""
    (launcher,) = psutil.Process().children()
    starters = [each for each in launcher.children() if "deepspeed.launcher.launch" in each.cmdline()]
    ranks = [rank for each in starters for rank in each.children()]
    for process in ranks or [launcher, *launcher.children(recursive=True)]:
        process.send_signal(number)


def _python() -> str:
    return shutil.which(os.environ.get("PYTHON") or sys.executable) or sys.executable


def main() -> None:
    stage, *flags = sys.argv[1:]
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    start(plan(stage, flags, os.environ, Here(torch.cuda.device_count(), has_deepspeed)))


if __name__ == "__main__":
    run(main)
