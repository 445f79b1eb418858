"""A run that is killed, stopped or short of disk ends with the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers

from llava.errors import CheckpointError, SettingsError
from llava.model.builder import load_pretrained_model
from llava.train.arguments import TrainingArguments, parse_arguments
from llava.train.checkpointing.signals import Signals
from llava.train.checkpointing.verify import find_damage
from llava.train.reporters import kept_wandb_run
from llava.train.train import assemble, train
from support.errors import raises_code
from support.shared_data import golden_folder
from support.tiers import exhaustive
from support.training_processes import TrainingRun, equal_bits, recorded_flags, trained_weights
from support.warm_python import warm_python

BASE = "weights/tiny-vicuna-v1.5"
# Says which step a run is at, as on a terminal.
BAR = ["--disable_tqdm", "False"]


@pytest.fixture(autouse=True)
def in_golden_folder(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded flags name files from there."""
    monkeypatch.chdir(golden)


def eight_steps(golden: Path, kind: str, output: Path, *more: str, processes: int = 1) -> list[str]:
    """Return flags for two epochs with all that has state: accumulation, dropout, workers."""
    argv = [*recorded_flags(golden, kind), "--output_dir", str(output)]
    data = output.parent / "data.json"
    rows = json.loads(Path(argv[argv.index("--data_path") + 1]).read_text())
    if not data.exists():
        data.write_text(json.dumps(rows[:16]))
    argv += ["--max_steps", "-1", "--num_train_epochs", "2", "--gradient_accumulation_steps", "2"]
    argv += ["--per_device_train_batch_size", str(2 // processes), "--dataloader_num_workers", "1"]
    argv += ["--data_path", str(data)]
    argv += ["--save_strategy", "steps", "--save_steps", "1"]
    return [*argv, *(["--lora_dropout", "0.1"] if kind == "lora" else []), *more]


def start(golden: Path, argv: list[str], processes: int = 1) -> TrainingRun:
    output = Path(argv[argv.index("--output_dir", argv.index("--output_dir") + 1) + 1])
    return TrainingRun(
        partial(train, argv=argv), cwd=golden, log=output.with_suffix(".log"), processes=processes
    )


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return all that a folder holds, with times and bytes; its own time changes with the lock file."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("checkpoint-*"))


# ---- killed and stopped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "processes", "zero"),
    [
        ("lora", 1, ""),
        ("pretrain", 2, ""),
        ("lora", 2, "3"),
        exhaustive("full", 2, "2"),
        exhaustive("pretrain", 1, ""),
        exhaustive("lora", 2, "FSDP"),
        exhaustive("full", 2, "FSDP"),
        exhaustive("full", 1, ""),
        exhaustive("lora", 2, ""),
        exhaustive("full", 2, ""),
        exhaustive("lora", 2, "2"),
        exhaustive("pretrain", 2, "2"),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    golden: Path, repo: Path, tmp_path: Path, kind: str, processes: int, zero: str
) -> None:
    """Kill it in the first epoch, during a checkpoint if possible, and send SIGTERM in the second."""
    more: list[str] = []
    if zero == "FSDP":
        more = ["--fsdp", "True"]
    elif zero:
        pytest.importorskip("deepspeed")
        more = ["--deepspeed", str(repo / f"scripts/zero{zero}.json")]
    whole, output = tmp_path / "whole", tmp_path / "out"
    uninterrupted = start(golden, eight_steps(golden, kind, whole, *more, processes=processes), processes)
    argv = eight_steps(golden, kind, output, *more, "--save_total_limit", "2", processes=processes)
    run = start(golden, argv, processes)
    run.wait_for(lambda: any(find_damage(path) is None for path in output.glob("checkpoint-[1-3]")))
    run.wait_for(lambda: any(output.glob(".saving-*")))
    run.kill()
    assert all(find_damage(path) is None for path in output.glob("checkpoint-*"))

    run = start(golden, argv, processes)
    run.wait_for(lambda: (output / "checkpoint-5").is_dir())
    run.processes[-1].terminate()
    assert run.wait() == [128 + signal.SIGTERM] * processes
    newest = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert f"the same command resumes from {newest}" in run.output()
    assert not (output / "trainer_state.json").exists()

    assert start(golden, argv, processes).wait() == [0] * processes
    assert uninterrupted.wait() == [0] * processes
    assert equal_bits(whole, output)
    assert checkpoints(output) == ["checkpoint-7", "checkpoint-8"]
    assert not list(output.glob(".saving-*"))
    base = None if kind == "full" else BASE
    _, model, _, _ = load_pretrained_model(output / "checkpoint-7", base, device="cpu", dtype="float32")
    assert model.get_vision_tower().is_loaded

    before = contents(output)
    again = start(golden, argv, processes)
    assert again.wait() == [0] * processes
    assert "already finished" in again.output()
    assert contents(output) == before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    signals = Signals()
    before = signal.getsignal(signal.SIGINT)
    with signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same, passed on by a launcher
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught == signal.SIGINT
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_with_130(golden: Path, tmp_path: Path) -> None:
    """A terminal also sends it to the data-loader workers, which must survive until the step ends."""
    output = tmp_path / "out"
    run = start(golden, eight_steps(golden, "lora", output, "--save_steps", "100", *BAR))
    run.wait_for(lambda: " 2/8 " in run.output())
    trainer = run.processes[0].pid
    assert trainer is not None
    loaders = Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()
    assert loaders
    for process in (trainer, *map(int, loaders)):
        os.kill(process, signal.SIGINT)
    assert run.wait() == [130]
    assert "SIGINT: saving after this step, then leaving; Ctrl-C again leaves at once" in run.output()
    (newest,) = output.glob("checkpoint-*")
    assert find_damage(newest) is None
    assert run.output().strip().endswith(f"of 8; the same command resumes from {newest}")
    assert "Traceback" not in run.output()


def test_the_launcher_exits_with_the_runs_code(tmp_path: Path) -> None:
    run = tmp_path / "run.py"
    run.write_text(
        "import pathlib, signal, sys, time\n"
        "if sys.argv[1].isdecimal(): sys.exit(int(sys.argv[1]))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(600)\n"
    )
    program = (
        "import sys; from llava.train.launch import Launch, start_run\n"
        "start_run(Launch('torchrun', sys.argv[1:]))"
    )
    command = [warm_python(), "-c", program, "--master_port", "0", str(run)]
    for code in (2, 128 + signal.SIGUSR1):  # an error it reported; a signal it handled
        ended = subprocess.run([*command, str(code)], capture_output=True, text=True)
        assert ended.returncode == code
        assert "Traceback" not in ended.stderr
        assert "error: rank" not in ended.stderr

    ready = tmp_path / "ready"
    launched = subprocess.Popen([*command, str(ready)], stderr=subprocess.PIPE, text=True)
    while not ready.exists():
        assert launched.poll() is None
        time.sleep(0.05)
    launched.terminate()
    _, error = launched.communicate()
    assert launched.returncode == 143
    assert "Traceback" not in error


@pytest.mark.slow
def test_an_error_in_a_loaders_process_ends_the_run(golden: Path, tmp_path: Path) -> None:
    """Workers ignore a launcher's SIGTERM but still end by their parent's."""
    images = tmp_path / "images"
    shutil.copytree(golden / "images", images, copy_function=shutil.copyfile)
    argv = eight_steps(golden, "pretrain", tmp_path / "out", "--image_folder", str(images))
    run = start(golden, [*argv, "--num_train_epochs", "100", *BAR])
    run.wait_for(lambda: " 2/400 " in run.output())
    images.rename(tmp_path / "gone")
    assert run.wait() == [2]
    assert "no such image file" in run.output().strip().splitlines()[-1]


# ---- when checkpoints are written, and when they cannot be


def two_steps(golden: Path, output: Path, *more: str, kind: str = "lora") -> list[str]:
    quick = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    saving = ["--save_strategy", "steps", "--save_steps", "1"]
    return [*recorded_flags(golden, kind), *quick, *saving, "--output_dir", str(output), *more]


def test_save_minutes_writes_checkpoints(golden: Path, tmp_path: Path) -> None:
    argv = two_steps(golden, tmp_path, "--save_steps", "50000", "--max_steps", "4")
    train(argv=argv)
    assert checkpoints(tmp_path) == []  # --save_minutes has not passed
    argv += ["--resume_from_checkpoint", "never", "--save_minutes", "1e-5", "--max_steps", "5"]
    train(argv=[*argv, "--save_total_limit", "2"])
    assert checkpoints(tmp_path) == [
        "checkpoint-3",
        "checkpoint-4",
    ]  # the result follows step 5
    for name in checkpoints(tmp_path):
        shutil.rmtree(tmp_path / name)
    # Without a limit, those of --save_steps stay, and of --save_minutes the last.
    train(argv=[*argv, "--save_steps", "2"])
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_resumed_run_saves_as_its_flags_say(golden: Path, tmp_path: Path) -> None:
    argv = two_steps(golden, tmp_path, "--max_steps", "5")
    train(argv=argv)
    (tmp_path / "trainer_state.json").unlink()
    for number in (2, 3, 4, 5):
        shutil.rmtree(tmp_path / f"checkpoint-{number}")
    train(argv=[*argv, "--save_steps", "3"])
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-3"]


class AtStep(transformers.TrainerCallback):
    """Runs an action before a given step."""

    def __init__(self, events: dict[int, Callable[[], Any]]) -> None:
        self._events = events

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._events.get(state.global_step + 1, lambda: None)()


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], Any]]], None]:
    """Return a function that sets the action before each step."""
    usual = transformers.trainer.DEFAULT_CALLBACKS

    def set_events(events: dict[int, Callable[[], Any]]) -> None:
        monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*usual, AtStep(events)])

    return set_events


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    golden: Path,
    small_disk: Callable[[int], Path],
    at_step: Callable[[dict[int, Callable[[], Any]]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = small_disk(8 << 10)
    filler = disk / "filler"

    def fill() -> None:
        filler.write_bytes(b"0" * (shutil.disk_usage(disk).free - (100 << 10)))

    at_step({2: fill, 3: filler.unlink, 4: fill})
    argv = two_steps(golden, disk / "out", "--max_steps", "4", "--save_total_limit", "1")
    with raises_code("saved-elsewhere", CheckpointError) as error:
        train(argv=argv)
    spare = (disk / "out/result-elsewhere").resolve()
    assert str(spare) in str(error.value)
    lost = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert len(lost) == 2
    assert "checkpoint-2: could not be written (" in lost[0]
    assert "out/checkpoint-1, is kept" in lost[0]
    assert checkpoints(disk / "out") == ["checkpoint-3"]
    assert not (disk / "out/adapter_model.safetensors").exists()  # all of the result or nothing
    with raises_code("not-writable", CheckpointError):
        train(argv=argv)  # still full
    weights = trained_weights(spare)
    filler.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava.train.build.load_language_model", None)
        train(argv=argv)  # moves the result, and trains nothing
    assert not spare.exists()
    assert json.loads((disk / "out/trainer_state.json").read_text())["global_step"] == 4
    assert all(torch.equal(each, weights[name]) for name, each in trained_weights(disk / "out").items())
    train(argv=argv)  # finished


def test_a_result_without_room_anywhere_waits_for_it(
    golden: Path,
    small_disk: Callable[[int], Path],
    at_step: Callable[[dict[int, Callable[[], Any]]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = small_disk(8 << 10)
    filler = disk / "filler"
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    at_step({2: lambda: filler.write_bytes(b"0" * (shutil.disk_usage(disk).free - (100 << 10)))})
    argv = two_steps(golden, disk / "out", "--save_total_limit", "1")
    with monkeypatch.context() as patch:
        patch.setattr("llava.train.finish._WAIT_S", 0.0)
        with raises_code("not-writable", CheckpointError) as error:
            train(argv=argv)
    assert str(error.value).endswith("the same command resumes from " + str(disk / "out/checkpoint-1"))

    filler.unlink()
    monkeypatch.setattr("llava.train.finish.time.sleep", lambda _: filler.unlink())  # somebody makes room
    train(argv=argv)
    assert json.loads((disk / "out/trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its writing thread's
def test_a_full_disk_ends_tensorboards_curves_and_not_the_run(
    golden: Path,
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    at_step: Callable[[dict[int, Callable[[], Any]]], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = small_disk(512)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "set by --logging_dir, and to be gone afterwards")

    def fill() -> None:
        with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"0" * 1024)

    at_step({2: fill})
    more = ["--report_to", "tensorboard", "--logging_dir", str(disk / "runs"), "--max_steps", "15"]
    train(argv=two_steps(golden, tmp_path / "out", *more, "--save_strategy", "no"))
    assert "TensorBoard's file cannot be written" in caplog.text
    assert (tmp_path / "out/trainer_state.json").is_file()


def test_a_removed_output_folder_is_created_again(
    golden: Path,
    tmp_path: Path,
    at_step: Callable[[dict[int, Callable[[], Any]]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "out"
    at_step({2: lambda: shutil.rmtree(output)})
    train(argv=two_steps(golden, output))
    assert f"{output}: was removed during the run" in caplog.text
    assert find_damage(output / "checkpoint-2") is None
    assert (output / "trainer_state.json").is_file()


# ---- where a resumed run reports to


def test_the_wandb_run_of_an_output_folder_goes_on_unless_the_user_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SimpleNamespace(report_to=["wandb"], process_index=0, output_dir=str(tmp_path / "out"))

    def settings(*, is_resumed: bool) -> dict[str, str]:
        with kept_wandb_run(cast(TrainingArguments, args), is_resumed=is_resumed):
            return {name: os.environ[name] for name in os.environ if name.startswith("WANDB_R")}

    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    first = settings(is_resumed=False)
    assert set(first) == {"WANDB_RUN_ID", "WANDB_RESUME"}
    assert first["WANDB_RESUME"] == "allow"
    assert "WANDB_RUN_ID" not in os.environ
    assert settings(is_resumed=True) == first
    assert settings(is_resumed=False)["WANDB_RUN_ID"] != first["WANDB_RUN_ID"]  # started over
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert settings(is_resumed=True) == {"WANDB_RUN_ID": "mine"}
    monkeypatch.delenv("WANDB_RUN_ID")
    args.report_to = ["tensorboard"]
    assert settings(is_resumed=True) == {}


def test_wandb_logs_a_resumed_run_as_one(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    argv = two_steps(golden, tmp_path / "out", "--report_to", "wandb")
    train(argv=argv)
    wandb.finish()
    (tmp_path / "out/trainer_state.json").unlink()
    shutil.rmtree(tmp_path / "out/checkpoint-2")
    train(argv=argv)
    wandb.finish()
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert set(runs) == {(tmp_path / "out/wandb_run_id").read_text()}


def test_mlflow_has_what_the_log_has(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    train(argv=two_steps(golden, tmp_path / "out", "--report_to", "mlflow"))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    logged = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    metrics = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert {metric.step: metric.value for metric in metrics} == pytest.approx(logged)
    assert run.data.params["lora_r"] == "8"


# ---- an adapter trained further


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run with a checkpoint."""
    golden = golden_folder()
    output = tmp_path_factory.mktemp("runs") / "adapter"
    before = Path.cwd()
    os.chdir(golden)
    try:
        train(argv=two_steps(golden, output, "--max_steps", "4", "--save_steps", "3"))
    finally:
        os.chdir(before)
    return output


def further(golden: Path, adapter: Path, output: Path, *more: str) -> list[str]:
    """Return flags that train an adapter further."""
    argv = two_steps(golden, output, "--init_adapter", str(adapter), *more)
    place = argv.index("--pretrain_mm_mlp_adapter")
    return argv[:place] + argv[place + 2 :]


@pytest.mark.parametrize("which", [".", "checkpoint-3"])
def test_an_adapter_is_trained_further_with_its_projector(
    golden: Path, tmp_path: Path, adapter: Path, which: str
) -> None:
    stored = trained_weights(adapter / which)
    argv = further(golden, adapter / which, tmp_path / "out", "--lora_dropout", "0.5")
    model = assemble(*parse_arguments(argv)).model
    own = {name.replace(".default.", "."): each for name, each in model.named_parameters()}
    assert set(stored) == {name for name, each in own.items() if each.requires_grad}
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
    assert model.peft_config["default"].lora_dropout == 0.5

    train(argv=argv)
    after = trained_weights(tmp_path / "out")
    assert set(after) == set(stored)
    assert not any(torch.equal(after[name], stored[name]) for name in stored if "lora_B" in name)
    _, model, _, _ = load_pretrained_model(tmp_path / "out", BASE, device="cpu", dtype="float32")
    assert model.get_vision_tower().is_loaded


def test_what_contradicts_an_adapter_is_said_at_once(golden: Path, tmp_path: Path, adapter: Path) -> None:
    flags = ["--lora_r", "4", "--pretrain_mm_mlp_adapter", "weights/tiny-pretrain", "--save_minutes", "-1"]
    with pytest.raises(SettingsError) as caught:
        parse_arguments(further(golden, adapter, tmp_path, *flags))
    for part in (
        "--init_adapter and --pretrain_mm_mlp_adapter: choose one",
        f"--lora_r 4: the adapter in {adapter} has 8;",
        "--save_minutes -1: wanted 0 or more",
    ):
        assert part in str(caught.value)
    with pytest.raises(SettingsError, match="--init_adapter without --lora_enable True"):
        parse_arguments(further(golden, adapter, tmp_path, "--lora_enable", "False"))
    with pytest.raises(SettingsError, match=r"--init_adapter images: no adapter_config\.json there; wanted"):
        parse_arguments(further(golden, Path("images"), tmp_path))
    with pytest.raises(SettingsError, match="--save_minutes 5 and --save_strategy no: choose one"):
        parse_arguments(two_steps(golden, tmp_path, "--save_strategy", "no", "--save_minutes", "5"))


def test_an_adapter_of_another_base_or_without_projector_is_refused(
    golden: Path, tmp_path: Path, adapter: Path
) -> None:
    bare, other = tmp_path / "bare", tmp_path / "other"
    for folder in (bare, other):
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / name, folder / name)
    with raises_code("missing-projector", CheckpointError):
        train(argv=further(golden, bare, tmp_path / "out"))

    beside = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    torch.save({name: tensor[:1] for name, tensor in beside.items()}, other / "non_lora_trainables.bin")
    with raises_code("wrong-weights", CheckpointError):
        train(argv=further(golden, other, tmp_path / "out"))

    settings = json.loads((other / "adapter_config.json").read_text())
    settings["target_modules"].remove("q_proj")
    (other / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError, match="other: the adapter does not fit its base: only the adapter has"
    ):
        train(argv=further(golden, other, tmp_path / "out"))


def test_a_script_goes_on_with_an_adapter_instead_of_a_projector(repo: Path, tmp_path: Path) -> None:
    # Stands in for Python: no GPU, no DeepSpeed, a free port; then writes the run's flags down.
    recorder = tmp_path / "python"
    recorder.write_text(
        '#!/usr/bin/env bash\n[[ $1 == - ]] && { echo "0 0 29999"; exit; }\nprintf "%s\\0" "$@" > "$FLAGS"\n'
    )
    recorder.chmod(0o755)
    flags = tmp_path / "flags"
    for name, settings in (("finetune_lora_dataengine", {}), ("finetune_task_lora", {"NPROC": "1"})):
        environment = {**os.environ, **settings, "PYTHON": str(recorder), "FLAGS": str(flags)}
        environment |= {"INIT_ADAPTER": "checkpoints/before", "OUTPUT_DIR": "out"}
        subprocess.run(["bash", str(repo / f"scripts/v1_5/{name}.sh")], env=environment, check=True)
        words = flags.read_text().split("\0")
        assert words[words.index("--init_adapter") + 1] == "checkpoints/before"
        assert (
            "--pretrain_mm_mlp_adapter" not in words
            or not words[words.index("--pretrain_mm_mlp_adapter") + 1]
        )
