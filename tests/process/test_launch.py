"""Start a run: the right launcher, several machines, and an end that names a failed process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llava.errors import SettingsError
from llava.train.checkpointing.verify import find_damage
from llava.train.launch import Launch, Machine, asks_for_plan, plan_launch
from support.errors import raises_code
from support.tiers import exhaustive
from support.training_processes import free_port
from support.warm_python import warm_python

TRAIN = "TRAIN"
HOSTS = "gpu01 slots=2\ngpu02 slots=2\n"


def planned(settings: dict[str, str], *, gpus: int = 0, deepspeed: bool = True) -> Launch:
    """Plan a launch with flags `--x 1`; paths of the program and the ZeRO file are shortened."""
    launch = plan_launch("3", ["--x", "1"], settings, Machine(gpus, deepspeed))
    names = {"train_mem.py": TRAIN, "zero3.json": "zero3.json"}
    arguments = [names.get(Path(word).name, word) for word in launch.arguments]
    return Launch(launch.launcher, arguments, launch.environment)


ZERO = [TRAIN, "--deepspeed", "zero3.json", "--x", "1"]
PLAIN = [TRAIN, "--x", "1"]
ON_PORT = ["--master_port", "29999"]


@pytest.mark.parametrize(
    ("gpus", "deepspeed", "nproc", "launcher", "arguments"),
    [
        (2, True, "", "deepspeed", [*ON_PORT, *ZERO]),
        (2, True, "1", "deepspeed", [*ON_PORT, "--num_gpus", "1", *ZERO]),
        (2, False, "", "torchrun", ["--nproc_per_node", "2", *ON_PORT, *PLAIN]),
        (0, True, "3", "torchrun", ["--nproc_per_node", "3", *ON_PORT, *PLAIN]),
        (0, True, "", "python", PLAIN),
        (1, False, "", "python", PLAIN),
    ],
)
def test_the_launcher_fits_the_machine(
    gpus: int, deepspeed: bool, nproc: str, launcher: str, arguments: list[str]
) -> None:
    launch = planned({"NPROC": nproc, "MASTER_PORT": "29999"}, gpus=gpus, deepspeed=deepspeed)
    assert (launch.launcher, launch.arguments) == (launcher, arguments)


@pytest.mark.parametrize("flags", [["--fsdp"], ["--fsdp", "True"], ["--fsdp=True"]])
def test_fsdp_takes_the_place_of_deepspeed(flags: list[str]) -> None:
    launch = plan_launch("3", flags, {}, Machine(gpus=2, has_deepspeed=True))
    assert (launch.launcher, "--deepspeed" in launch.arguments) == ("torchrun", False)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["--bits", "4"], False),
        (["--dry_run"], True),
        (["--dry_run", "True", "--bits", "4"], True),
        (["--dry_run=true"], True),
        (["--dry_run", "False"], False),
        (["--dry_run", "True", "--dry_run", "False"], False),
        (["--dry_run", "perhaps"], True),
    ],
)
def test_a_plan_is_told_from_a_run(flags: list[str], asked: bool) -> None:
    assert asks_for_plan(flags) is asked


@pytest.mark.parametrize(("nproc", "launched_on"), [("", "4,5,7"), ("2", "4,5"), ("1", "4")])
def test_deepspeed_stays_on_the_visible_gpus(nproc: str, launched_on: str) -> None:
    """Given --num_gpus it ignores CUDA_VISIBLE_DEVICES and takes other people's GPUs."""
    launch = planned({"NPROC": nproc, "CUDA_VISIBLE_DEVICES": "4,5,7"}, gpus=3)
    assert (launch.launcher, launch.environment) == ("deepspeed", {"CUDA_VISIBLE_DEVICES": launched_on})
    assert "--num_gpus" not in launch.arguments


TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(("deepspeed", "program"), [(True, ZERO), (False, PLAIN)])
def test_one_of_several_machines_meets_the_others(deepspeed: bool, program: list[str]) -> None:
    launch = planned(TWO, gpus=8, deepspeed=deepspeed)
    meeting = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "localhost", "--master_port", "29500"]
    assert (launch.launcher, launch.arguments) == ("torchrun", [*meeting, "--nproc_per_node", "8", *program])
    assert launch.environment == {"GLOO_SOCKET_IFNAME": "lo"}
    assert planned({**TWO, "GLOO_SOCKET_IFNAME": "eth7"}).environment == {"GLOO_SOCKET_IFNAME": "eth7"}


def hostfile(folder: Path, text: str = HOSTS) -> dict[str, str]:
    path = folder / "hosts.txt"
    path.write_text(text)
    return {"HOSTFILE": str(path)}


def test_a_list_of_machines_goes_to_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    hosts = hostfile(tmp_path, f"# all\n\n{HOSTS}")
    launch = planned({**hosts, "NPROC": "1"})
    words = ["--hostfile", hosts["HOSTFILE"], "--num_gpus", "1", "--master_port", "29500"]
    assert (launch.launcher, launch.arguments) == ("deepspeed", [*words, *ZERO])
    quoted = plan_launch("3", ["--a", "", "--b", "$x", "--c", "d e"], hosts, Machine(0, True))
    # For pdsh's shell; DeepSpeed itself quotes what has a space.
    assert quoted.arguments[-6:] == ["--a", "''", "--b", "'$x'", "--c", "d e"]
    by_hand = planned({**hosts, "NODE_RANK": "1", "MASTER_ADDR": "localhost"})
    words = ["--no_ssh", "--node_rank", "1", "--master_addr", "localhost", "--master_port", "29500"]
    assert by_hand.arguments == ["--hostfile", hosts["HOSTFILE"], *words, *ZERO]


@pytest.mark.parametrize(
    ("settings", "code", "facts"),
    [
        ({"NPROC": "8"}, "too-few-gpus", ["NPROC", "8", "3"]),
        ({"NPROC": "some"}, "not-a-number", ["NPROC", "'some'"]),
        ({"MASTER_PORT": "-1"}, "not-a-number", ["MASTER_PORT", "'-1'"]),
        ({**TWO, "NODE_RANK": "2"}, "unknown-node", ["NODE_RANK", "2", "0 to 1"]),
        ({**TWO, "NODE_RANK": ""}, "missing-setting", ["NODE_RANK", "0 to 1"]),
        ({**TWO, "MASTER_ADDR": ""}, "missing-setting", ["MASTER_ADDR"]),
        ({**TWO, "NNODES": "0"}, "not-a-number", ["NNODES", "'0'"]),
        ({**TWO, "MASTER_ADDR": "no machine"}, "unreachable-machine", ["MASTER_ADDR no machine"]),
        ({"HOSTFILE": "none.txt"}, "missing-file", ["HOSTFILE none.txt"]),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], code: str, facts: list[str]) -> None:
    with raises_code(code, SettingsError) as error:
        planned(settings, gpus=3)
    assert all(fact in str(error.value) for fact in facts)


@pytest.mark.parametrize(
    ("text", "settings", "code", "facts"),
    [
        ("", {}, "bad-hostfile", ["hosts.txt", "name slots=8"]),
        ("gpu01 slots=2\ngpu02: 2\n", {}, "bad-hostfile", ["hosts.txt", "gpu02: 2"]),
        ("gpu01 slots=2\ngpu01 slots=2\n", {}, "bad-hostfile", ["hosts.txt", "gpu01"]),
        (HOSTS, {"NNODES": "2"}, "contradicting-settings", ["HOSTFILE", "NNODES"]),
        (HOSTS, {"NODE_RANK": "0"}, "missing-setting", ["MASTER_ADDR"]),
        (HOSTS, {"NODE_RANK": "2", "MASTER_ADDR": "localhost"}, "unknown-node", ["NODE_RANK", "0 to 1"]),
    ],
)
def test_a_wrong_list_of_machines_is_named(
    tmp_path: Path, text: str, settings: dict[str, str], code: str, facts: list[str]
) -> None:
    pytest.importorskip("deepspeed")
    with raises_code(code, SettingsError) as error:
        planned(hostfile(tmp_path, text) | settings)
    assert all(fact in str(error.value) for fact in facts)


def test_a_list_of_machines_needs_deepspeed(tmp_path: Path) -> None:
    with raises_code("missing-package", SettingsError):
        planned(hostfile(tmp_path), deepspeed=False)


# ---- real runs


def environment(golden: Path, output: Path, **settings: str) -> dict[str, str]:
    """Return settings with tiny weights for a script, without the caller's own launcher settings."""
    weights = golden / "weights"
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NPROC", "NODE_RANK", "NNODES", "HOSTFILE")
    return {name: value for name, value in os.environ.items() if name not in gone} | {
        "PYTHON_EXEC": warm_python(),
        "PYTHON": warm_python(),
        "MODEL": str(weights / "tiny-vicuna-v1.5"),
        "VISION_TOWER": str(weights / "tiny-clip-vit-patch14-56"),
        "PROJECTOR": str(weights / "tiny-pretrain" / "mm_projector.bin"),
        "DATA_PATH": str(golden / "train_data/train.json"),
        "IMAGE_FOLDER": str(golden / "images"),
        "OUTPUT_DIR": str(output),
        **settings,
    }


SHORT = [*("--max_steps", "2", "--per_device_train_batch_size", "1", "--model_max_length", "256")]
SHORT += [
    *("--bf16", "False", "--dataloader_num_workers", "0", "--save_strategy", "no", "--report_to", "none")
]


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def program(folder: Path, name: str, text: str) -> None:
    """Write an executable that stands in for a missing command."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}\n")
    path.chmod(0o755)


@pytest.mark.slow
def test_slurms_machines_train_together(repo: Path, golden: Path, tmp_path: Path) -> None:
    """Two tasks as srun starts them, both on this machine."""
    bin_folder = tmp_path / "bin"
    program(
        bin_folder, "scontrol", '[[ $* == "show hostnames node[1-2]" ]]; printf "localhost\\nlocalhost\\n"'
    )
    tasks = 'shift\nSLURM_NODEID=1 "$@" & other=$!\nSLURM_NODEID=0 "$@"\nwait "$other"'
    program(bin_folder, "srun", f"[[ $1 == --kill-on-bad-exit=1 ]]\n{tasks}")
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(os.getpid())}
    env = environment(golden, tmp_path / "out", **slurm, PATH=f"{bin_folder}:{os.environ['PATH']}")
    command = ["bash", "scripts/v1_5/slurm.sh", "scripts/v1_5/finetune_lora.sh", *SHORT]
    result = subprocess.run(command, env=env, cwd=repo, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(losses(tmp_path / "out")) == 2


@pytest.fixture
def two_machines(tmp_path: Path) -> Iterator[list[str]]:
    """Create two network namespaces joined by a cable, 10.213.7.1 and .2; return their names."""
    names = [f"llava-{os.getpid()}-{place}" for place in (0, 1)]
    ends = [f"lv{os.getpid() % 100000}-{place}" for place in (0, 1)]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add {ends[0]} type veth peer name {ends[1]}"]
    for place, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands += [f"ip link set {end} netns {name}"]
        inside = f"ip -n {name}"
        commands += [f"{inside} addr add 10.213.7.{place + 1}/24 dev {end}"]
        commands += [f"{inside} link set {end} up", f"{inside} link set lo up"]
    try:
        for command in commands:
            if shutil.which("ip") is None or subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip("making network namespaces is not permitted here")
        yield names
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_machines_train_together(
    repo: Path, golden: Path, tmp_path: Path, two_machines: list[str]
) -> None:
    """Each has its own network, so they can only meet over the cable."""
    command = ["bash", str(repo / "scripts/v1_5/finetune_lora.sh"), *SHORT]
    started = []
    for rank, name in enumerate(two_machines):
        settings = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "10.213.7.1"}
        env = environment(golden, tmp_path / "out", **settings)
        inside = ["ip", "netns", "exec", name, *command]
        started.append(subprocess.Popen(inside, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-3000:]
    assert len(losses(tmp_path / "out")) == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_deepspeed_reaches_the_machines_of_a_list(repo: Path, golden: Path, tmp_path: Path) -> None:
    """DeepSpeed's own launcher, with stand-ins for ssh and pdsh that run the commands on this machine."""
    pytest.importorskip("deepspeed")
    bin_folder = tmp_path / "bin"
    program(bin_folder, "ssh", 'echo "127.0.0.1"')
    program(
        bin_folder,
        "pdsh",
        '[[ $1 == -S && $4 == -w && $5 == node1,node2 ]]\nshift 5; text="$*"\n'
        'bash -c "${text//%n/1}" & other=$!\nbash -c "${text//%n/0}"\nwait "$other"',
    )
    hosts = hostfile(tmp_path, "node1 slots=1\nnode2 slots=1\n")
    env = environment(golden, tmp_path / "out", **hosts, PATH=f"{bin_folder}:{os.environ['PATH']}")
    command = ["bash", str(repo / "scripts/v1_5/finetune_lora.sh"), *SHORT]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(losses(tmp_path / "out")) == 2


def by_deepspeed(folder: Path) -> dict[str, str]:
    """Return settings for two processes on this machine under DeepSpeed's own launcher."""
    program(folder / "bin", "ssh", "true")  # DeepSpeed checks that the machine can be reached
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    return {
        **hostfile(folder, "localhost slots=2\n"),
        **meeting,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }


class Running:
    """finetune_lora.sh in a process group of its own, as a terminal starts it."""

    def __init__(self, repo: Path, env: dict[str, str], folder: Path, *more: str) -> None:
        self._log = folder / "log"
        bar = ["--disable_tqdm", "False"]  # says which step it is at, as on a terminal
        command = ["bash", str(repo / "scripts/v1_5/finetune_lora.sh"), *SHORT, *bar, *more]
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 600
        while words not in self.output():
            assert self.process.poll() is None, self.output()[-3000:]
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ctrl_c_saves_under_deepspeeds_launcher_too(repo: Path, golden: Path, tmp_path: Path) -> None:
    """DeepSpeed's launcher would kill what has not ended 30 s after a signal."""
    pytest.importorskip("deepspeed")
    output = tmp_path / "out"
    env = environment(golden, output, **by_deepspeed(tmp_path))
    run = Running(
        repo, env, tmp_path, "--max_steps", "1000", "--save_strategy", "steps", "--save_steps", "1000"
    )
    run.wait_for("2/1000")
    family = psutil.Process(run.process.pid).children(recursive=True)
    ranks = [each for each in family if any(word.startswith("--local_rank") for word in each.cmdline())]
    assert len(ranks) == 2
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    assert run.process.wait(600) == 130, run.output()[-3000:]
    assert not any(rank.is_running() for rank in ranks)
    (checkpoint,) = output.glob("checkpoint-*")
    assert find_damage(checkpoint) is None
    text = run.output()
    assert f"the same command resumes from {checkpoint}" in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", exhaustive("deepspeed")])
def test_a_lost_process_ends_the_run_and_is_named_last(
    repo: Path, golden: Path, tmp_path: Path, launcher: str
) -> None:
    """Its images disappear; without help the other rank would wait for half an hour."""
    pytest.importorskip(launcher.replace("torchrun", "torch"))
    images = tmp_path / "images"
    shutil.copytree(golden / "images", images, copy_function=shutil.copyfile)
    settings = {"NPROC": "2"} if launcher == "torchrun" else by_deepspeed(tmp_path)
    env = environment(golden, tmp_path / "out", **settings, IMAGE_FOLDER=str(images))
    run = Running(repo, env, tmp_path, "--max_steps", "1000")
    run.wait_for("2/1000")
    images.rename(tmp_path / "gone")
    assert run.process.wait(600) == 2, run.output()[-3000:]
    last = run.output().strip().splitlines()[-1]
    assert last.startswith("error: rank ")
    assert "no such image file" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "who", "end", "code", "how"),
    [
        ("torchrun", "rank 1", "os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL"),
        ("deepspeed", "a process", "1 / 0", 1, "failed with exit code 1, see above"),
        exhaustive("torchrun", "rank 1", "1 / 0", 1, "failed with exit code 1, see above"),
        exhaustive("deepspeed", "a process", "os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL"),
    ],
)
def test_a_process_that_cannot_say_why_is_named_too(
    repo: Path, tmp_path: Path, launcher: str, who: str, end: str, code: int, how: str
) -> None:
    pytest.importorskip(launcher.replace("torchrun", "torch"))
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os, time\nif os.environ['RANK'] == '1': {end}\ntime.sleep(600)\n")
    words, env = ["--nproc_per_node", "2"], dict(os.environ)
    if launcher == "deepspeed":
        env |= by_deepspeed(tmp_path)
        words = ["--hostfile", env.pop("HOSTFILE"), "--master_addr", "localhost"]
    words += ["--master_port", free_port(), str(worker)]
    program = f"from llava.train.launch import Launch, start_run\nstart_run(Launch({launcher!r}, {words!r}))"
    command = [warm_python(), "-c", program]
    result = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=600)
    last = result.stderr.strip().splitlines()[-1]
    assert (result.returncode, last) == (code, f"error: {who} {how}; the others were stopped")


def test_a_wrong_setting_ends_a_script_with_one_line_and_2(repo: Path, golden: Path, tmp_path: Path) -> None:
    env = environment(golden, tmp_path / "out", NNODES="2", NODE_RANK="2", MASTER_ADDR="localhost")
    command = ["bash", str(repo / "scripts/v1_5/finetune.sh")]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    message = "error: NODE_RANK is 2, but the 2 machines are 0 to 1\n"
    assert (result.returncode, result.stderr) == (2, message)
