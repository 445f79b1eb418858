"""Run training in processes that a test can kill or signal.

They are forked from a process that has imported the libraries, so a start takes one second instead of ten.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava.command import run
from llava.errors import SettingsError
from llava.train.train import train

LIMIT_S = 600.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["llava.train.train", "deepspeed"])


class TrainingRun:
    """One run: its processes and their output."""

    def __init__(
        self,
        work: Callable[[], object],
        *,
        cwd: Path,
        log: Path,
        processes: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start the processes; several of them as a launcher would, over gloo."""
        self.log = log
        shared = dict(settings or {})
        if processes > 1:
            shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
            shared["WORLD_SIZE"] = str(processes)
        self.processes: list[ForkServerProcess] = []
        for rank in range(processes):
            own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
            process = _context.Process(target=_work, args=(work, cwd, log, own))
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int | None]:
        """Wait for the processes to end and return their exit codes; they may not be silent for long."""
        for process in self.processes:
            said = None
            while process.exitcode is None:
                assert said != self.output(), f"does not end: {self.output()[-3000:]}"
                said = self.output()
                process.join(LIMIT_S)
        return [process.exitcode for process in self.processes]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, while the run is alive."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert any(process.is_alive() for process in self.processes), self.output()[-3000:]
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill all processes, as a power cut would."""
        for process in self.processes:
            process.kill()
        self.wait()

    def output(self) -> str:
        """Return what the run wrote to stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


def free_port() -> str:
    """Return a port that is free now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


def recorded_flags(golden: Path, kind: str) -> list[str]:
    """Return the flags of a recorded run on tiny weights: lora, pretrain or full."""
    flags: list[str] = json.loads((golden / f"viii_{kind}.json").read_text())["argv"]
    return flags


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the trained weights that a run of any kind left in its folder."""
    found: dict[str, torch.Tensor] = {}
    for name in ("adapter_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            found |= load_file(folder / name)
    for name in ("non_lora_trainables.bin", "mm_projector.bin"):
        if (folder / name).is_file():
            found |= torch.load(folder / name, weights_only=True)
    assert found, f"{folder}: no weights"
    return found


def equal_bits(first: Path, second: Path) -> bool:
    """Return whether two runs left the same tensors."""
    ours, theirs = trained_weights(first), trained_weights(second)
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def train_many(folder: Path, jobs: dict[str, list[str]], *, cwd: Path, processes: int) -> dict[str, str]:
    """Train all jobs in turn in the same processes; return the error of each refused one."""
    refused = folder / f"{processes}.errors"
    settings = {"TORCH_EXTENSIONS_DIR": str(folder / "compiled")}
    log = folder / f"{processes}.log"
    work = partial(_train_many, jobs, refused)
    started = TrainingRun(work, cwd=cwd, log=log, processes=processes, settings=settings)
    codes = started.wait()
    assert not any(codes), started.output()[-5000:]
    errors: dict[str, str] = json.loads(refused.read_text())
    return errors


def _train_many(jobs: dict[str, list[str]], refused: Path) -> None:
    errors: dict[str, str] = {}
    for name, argv in jobs.items():
        try:
            train(argv=argv)
        except SettingsError as error:
            errors[name] = str(error)
        # Forget this run's state but keep the process group.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        for variable in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
            del os.environ[variable]
    if os.environ.get("RANK", "0") == "0":
        refused.write_text(json.dumps(errors))


def _work(work: Callable[[], object], cwd: Path, log: Path, settings: dict[str, str]) -> None:
    gc.freeze()  # else each of the libraries' many gc.collect() walks all that was imported
    multiprocessing.set_start_method("fork", force=True)  # data loaders as in a run that nobody forked
    os.chdir(cwd)
    os.environ.update(settings)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as on a terminal

    def main() -> None:
        work()

    run(main)
