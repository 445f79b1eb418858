"""Which checkpoint a run resumes from: the one with the most steps that is whole, whatever its date."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.errors import CheckpointError
from llava.train.arguments import parse_arguments
from llava.train.checkpointing.resume import Start, find_start
from llava.train.checkpointing.verify import CHECKSUMS, find_damage
from llava.train.train import train
from support.errors import raises_code
from support.shared_data import golden_folder
from support.training_processes import recorded_flags

Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def in_golden_folder(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded flags name files from there."""
    monkeypatch.chdir(golden)


def flags(golden: Path, output: Path, *more: str) -> list[str]:
    quick = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(output)]
    return [*recorded_flags(golden, "lora"), *quick, *saving, *more]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that was stopped after its third step left: three checkpoints, no result."""
    golden = golden_folder()
    output = tmp_path_factory.mktemp("runs") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(golden)
        train(argv=flags(golden, output))
    (output / "trainer_state.json").unlink()
    return output


@pytest.fixture
def output(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "out")
    return tmp_path / "out"


def start_of(golden: Path, output: Path, *more: str) -> Start:
    return find_start(parse_arguments(flags(golden, output, *more))[2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


def test_the_most_steps_count_and_not_the_dates(golden: Path, output: Path) -> None:
    for step, year in ((1, 4e9), (2, 1e9), (3, 0.0)):  # a clock that steps back, or `cp -r`
        for path in (output / f"checkpoint-{step}").iterdir():
            os.utime(path, (year, year))
    assert start_of(golden, output).checkpoint == output / "checkpoint-3"
    (output / "checkpoint-3").rename(output / "checkpoint-20")
    (output / "checkpoint-2").rename(output / "checkpoint-100")  # its state says 2
    assert start_of(golden, output).checkpoint == output / "checkpoint-20"


def test_what_was_just_written_is_never_pruned(golden: Path, output: Path) -> None:
    shutil.rmtree(output / "checkpoint-2")
    shutil.rmtree(output / "checkpoint-3")
    for path in (output / "checkpoint-1").iterdir():
        os.utime(path, (4e9, 4e9))
    train(argv=flags(golden, output, "--save_total_limit", "1"))
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]


def test_checkpoints_of_an_earlier_run_are_kept_apart(
    golden: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never = ["--resume_from_checkpoint", "never", "--save_total_limit", "1", "--max_steps", "2"]
    train(argv=flags(golden, output, *never, "--save_steps", "2"))
    names = sorted(path.name for path in output.iterdir() if path.is_dir() and "checkpoint" in path.name)
    assert names == ["checkpoint-2", "earlier-1-checkpoint-3"]
    assert "checkpoint-3: is of an earlier run" in caplog.text


FILES = (
    *("rng_state.pth", "scheduler.pt", "optimizer.pt", "trainer_state.json", "adapter_model.safetensors"),
    *("non_lora_trainables.bin", "adapter_config.json"),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    golden: Path, output: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Damage
) -> None:
    damage(output / "checkpoint-3" / name)
    assert start_of(golden, output).checkpoint == output / "checkpoint-2"
    (line,) = [each.getMessage() for each in caplog.records if "checkpoint-3" in each.getMessage()]
    assert str(output / "checkpoint-3" / name) in line
    assert "\n" not in line

    asked = ["--resume_from_checkpoint", str(output / "checkpoint-3")]
    with raises_code("damaged-checkpoint", CheckpointError) as error:
        start_of(golden, output, *asked)
    assert str(output / "checkpoint-3" / name) in str(error.value)


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_one_without_checksums_is_judged_by_its_files(
    golden: Path, output: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Damage
) -> None:
    """As older versions leave them; the original's lack non_lora_trainables.bin, which loading refuses."""
    for step in (2, 3):
        (output / f"checkpoint-{step}" / CHECKSUMS).unlink()
    damage(output / "checkpoint-3" / name)
    is_refused_later = (name, damage) == ("non_lora_trainables.bin", Path.unlink)
    expected = output / ("checkpoint-3" if is_refused_later else "checkpoint-2")
    assert start_of(golden, output).checkpoint == expected
    assert f"{expected}: has no {CHECKSUMS}" in caplog.text


def test_checksums_that_cannot_be_read_are_no_proof(golden: Path, output: Path) -> None:
    for content in ("", "nonsense\n", f"{'0' * 64}  gone.bin\n"):
        (output / "checkpoint-3" / CHECKSUMS).write_text(content)
        assert start_of(golden, output).checkpoint == output / "checkpoint-2"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(golden: Path, output: Path) -> None:
    for step in (1, 2, 3):
        cut(output / f"checkpoint-{step}" / "optimizer.pt")
    with raises_code("damaged-checkpoint", CheckpointError) as error:
        start_of(golden, output)
    assert "checkpoint-3/optimizer.pt" in str(error.value)
    assert start_of(golden, output, "--resume_from_checkpoint", "never") == Start()


def test_checkpoints_of_weights_only_are_not_resumed_and_not_started_over(
    golden: Path, tmp_path: Path
) -> None:
    argv = flags(golden, tmp_path, "--save_only_model", "True")
    train(argv=argv)
    (tmp_path / "trainer_state.json").unlink()
    with raises_code("weights-only", CheckpointError):
        train(argv=argv)


def test_the_files_of_several_ranks_and_of_deepspeed_are_verified(output: Path) -> None:
    checkpoint = output / "checkpoint-3"
    lines = (checkpoint / CHECKSUMS).read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == {
        str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.name != CHECKSUMS
    }
    # Without checksums, by name.
    (checkpoint / CHECKSUMS).unlink()
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copyfile(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    (checkpoint / "latest").write_text("global_step3")
    assert "global_step" in str(find_damage(checkpoint))
    states = checkpoint / "global_step3" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    states.parent.mkdir()
    shutil.copyfile(checkpoint / "rng_state_0.pth", states)
    assert find_damage(checkpoint) is None
    cut(states)
    assert str(states) in str(find_damage(checkpoint))


def test_the_state_of_a_checkpoint_may_hold_anything(output: Path) -> None:
    checkpoint = output / "checkpoint-3"
    (checkpoint / CHECKSUMS).unlink()
    states: list[object] = [[], {}, {"global_step": "3", "max_steps": 3}, {"global_step": 3}]
    for state in states:
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        assert find_damage(checkpoint) is not None
