"""Shortcuts change no loss where processes share a run, nor where weights are in 4 or 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.distributed_runs import LORA, WAYS, common_flags, differences, logged, mixed_data
from support.training_processes import train_many

# Of 4 and 8 bits only losses: what is multiplied in int8 depends on all that is multiplied at once.
QUANTISED = {"4": 1e-4, "8": 0.05}


@pytest.mark.slow
def test_the_fast_recipe_learns_what_one_process_does_by_the_exact_one(
    repo: Path, golden: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    pytest.importorskip("bitsandbytes")
    flags = [*common_flags(golden, mixed_data(golden, tmp_path)), *LORA]
    # Two short samples in a row or one longer: processes need different numbers of rows in some steps.
    short = ["--micro_batch_tokens", "60"]
    halved = [*short, "--gradient_accumulation_steps", "2", "--max_steps", "2"]
    one = WAYS["one process"]
    alone = {"exact": [*one, "--recipe", "exact"], "fast": [*one, *short]}
    for bits in QUANTISED:
        # One step with a rate of 0 and one without are enough, and int8 is slow on a CPU.
        alone |= {
            f"{name}, {bits}": [*alone[name], "--bits", bits, "--max_steps", "2"]
            for name in ("exact", "fast")
        }
    shared = {way: [*WAYS[way], *short] for way in ("DDP", "ZeRO-2", "ZeRO-3")}
    shared["FSDP"] = [*WAYS["FSDP"], *short, "--checkpoint_layers", "2"]
    shared |= {f"{way}, accumulated": [*WAYS[way], *halved] for way in ("DDP", "ZeRO-2", "FSDP")}

    for processes, jobs in ((1, alone), (2, shared)):
        named = {name: [*flags, *more, "--output_dir", str(tmp_path / name)] for name, more in jobs.items()}
        assert train_many(tmp_path, named, cwd=repo, processes=processes) == {}
    for name in ("fast", "DDP", "ZeRO-2", "ZeRO-3", "FSDP"):
        assert differences(tmp_path / name, tmp_path / "exact", "32") == [], name
    for bits, tolerance in QUANTISED.items():
        ours, theirs = (logged(tmp_path / f"{name}, {bits}", "loss") for name in ("fast", "exact"))
        assert ours == pytest.approx(theirs, abs=tolerance)
    steps = logged(tmp_path / "DDP, accumulated", "loss")
    for way in ("ZeRO-2", "FSDP"):
        assert steps == pytest.approx(logged(tmp_path / f"{way}, accumulated", "loss"), abs=1e-5)
    # The first step warms up at a rate of 0: its loss is the mean of the first two batches' of the others.
    assert steps[0] == pytest.approx(sum(logged(tmp_path / "exact", "loss")[:2]) / 2, abs=1e-5)
