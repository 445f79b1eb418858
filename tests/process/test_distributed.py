"""Every way of sharing a run among processes that the documents promise trains as one process does."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from llava.schema import JsonObject
from llava.train.arguments import parse_arguments
from llava.train.step.fsdp import choose_fsdp
from llava.train.supported import FSDP2, unsupported
from llava.train.train import assemble, fit
from support.distributed_runs import (
    LORA,
    WAYS,
    common_flags,
    differences,
    logged,
    mixed_data,
)
from support.errors import raises_code
from support.tiers import exhaustive
from support.tiny_checkpoints import adapter, self_trained
from support.training_processes import TrainingRun, train_many, trained_weights

TRAINED = {
    "LoRA": LORA,
    "projector only": ["--tune_mm_mlp_adapter", "True"],
    "all weights": ["--mm_projector_lr", "2e-4"],
    "LoRA on 4 bit": [*LORA, "--bits", "4"],
    "LoRA on 8 bit": [*LORA, "--bits", "8"],
}


def table(repo: Path) -> dict[tuple[str, str], str]:
    """The documents' words by (way, what is trained)."""
    text = (repo / "scripts/v1_5/DISTRIBUTED.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)
    ]
    columns, _, *body = rows[: 2 + len(WAYS)]
    cells = {(way, kind): word for way, *words in body for kind, word in zip(columns[1:], words, strict=True)}
    assert set(cells) == {(way, kind) for way in WAYS for kind in TRAINED}
    return cells


def every_third_cell(way: str, kind: str) -> bool:
    """Return whether the default run has this cell: one process always, of the rest a third in diagonals."""
    return way == "one process" or (list(WAYS).index(way) + list(TRAINED).index(kind)) % 3 == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted", [every_third_cell, exhaustive(lambda way, kind: True)], ids=["third", "all"]
)
def test_the_cells_of_the_documents_table_are_as_it_says(
    repo: Path, golden: Path, tmp_path: Path, wanted: Callable[[str, str], bool]
) -> None:
    pytest.importorskip("deepspeed")
    pytest.importorskip("bitsandbytes")
    flags = common_flags(golden, mixed_data(golden, tmp_path))
    cells = {cell: word for cell, word in table(repo).items() if wanted(*cell)}
    jobs: dict[int, dict[str, list[str]]] = {1: {}, 2: {}}
    for (way, kind), word in cells.items():
        # 4-bit weights compute in 16 bit, 8-bit ones in 32; one of the others shows that both do.
        precisions = {"LoRA on 4 bit": ["16"], "LoRA": ["32", "16"]}.get(kind, ["32"])
        for precision in precisions[: 2 if word == "yes" else 1]:
            name = f"{way}, {kind}, {precision}"
            own = [*WAYS[way], *TRAINED[kind], "--bf16", str(precision == "16")]
            jobs[1 if way == "one process" else 2][name] = [
                *flags,
                *own,
                "--output_dir",
                str(tmp_path / name),
            ]

    refused = {
        **train_many(tmp_path, jobs[1], cwd=repo, processes=1),
        **train_many(tmp_path, jobs[2], cwd=repo, processes=2),
    }
    wrong = {}
    for name in [*jobs[1], *jobs[2]]:
        way, kind, precision = name.split(", ")
        word = cells[way, kind]
        if word != "yes":
            assert word.startswith("no: ")
            if word.removeprefix("no: ") not in refused.get(name, "") or (tmp_path / name).exists():
                wrong[name] = [f"wanted {word}, got {refused.get(name, 'a run')}"]
        elif name in refused:
            wrong[name] = [refused[name]]
        elif found := differences(tmp_path / name, tmp_path / f"one process, {kind}, {precision}", precision):
            wrong[name] = found
    assert not wrong, json.dumps(wrong, indent=1)
    for kind in TRAINED:  # something was learned, at a rate that rose and fell
        alone = tmp_path / f"one process, {kind}, {'16' if '4 bit' in kind else '32'}"
        assert logged(alone, "learning_rate") == pytest.approx([2e-3, 1e-3, 0.0])
    assert not (tmp_path / "compiled").exists()


@pytest.mark.slow
def test_an_adapter_is_trained_further_every_way(repo: Path, golden: Path, tmp_path: Path) -> None:
    """At a rate of 0 what is saved is what was given, and the loss is that adapter's."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("bitsandbytes")
    given = adapter(tmp_path / "given", golden, prefix="base_model.model.")
    at_0 = {"--init_adapter": str(given), "--pretrain_mm_mlp_adapter": "", "--max_steps": "1"}
    at_0 |= {"--learning_rate": "0", "--mm_projector_lr": "0", "--lora_alpha": "16", "--bf16": "False"}
    flags = [*common_flags(golden, mixed_data(golden, tmp_path)), *LORA]
    flags += [word for pair in at_0.items() for word in pair]
    one = WAYS["one process"]
    jobs = {
        1: {"alone": one, "4 bit": [*one, "--bits", "4", "--bf16", "True"], "8 bit": [*one, "--bits", "8"]},
        2: {way: WAYS[way] for way in WAYS if way != "one process"},
    }
    for processes, ways in jobs.items():
        named = {way: [*flags, *more, "--output_dir", str(tmp_path / way)] for way, more in ways.items()}
        assert train_many(tmp_path, named, cwd=repo, processes=processes) == {}
    wanted = trained_weights(given)
    (loss,) = logged(tmp_path / "alone", "loss")
    for way in (*jobs[1], *jobs[2]):
        saved = trained_weights(tmp_path / way)
        assert set(saved) == set(wanted)
        kept_in = torch.bfloat16 if way == "4 bit" else torch.float32
        for name, tensor in wanted.items():
            assert torch.equal(saved[name].float(), tensor.to(kept_in).float()), (way, name)
        assert logged(tmp_path / way, "loss") == pytest.approx([loss], abs=0.2 if "bit" in way else 1e-5)


@pytest.mark.slow
def test_zero_3_takes_a_projector_for_a_model_that_has_one(repo: Path, golden: Path, tmp_path: Path) -> None:
    """Its own is read in parts then, which another's weights do not fit."""
    pytest.importorskip("deepspeed")
    model = self_trained(tmp_path / "model", golden)
    flags = [*common_flags(golden, mixed_data(golden, tmp_path)), *LORA, "--model_name_or_path", str(model)]
    jobs = {"out": [*flags, *WAYS["ZeRO-3"], "--bf16", "True", "--output_dir", str(tmp_path / "out")]}
    assert train_many(tmp_path, jobs, cwd=repo, processes=2) == {}
    assert all(7 < loss < 9 for loss in logged(tmp_path / "out", "loss"))


@pytest.mark.slow
def test_fsdp_leaves_each_process_its_part_of_every_weight(repo: Path, golden: Path, tmp_path: Path) -> None:
    flags = [*common_flags(golden, mixed_data(golden, tmp_path)), *LORA, *WAYS["FSDP"], "--max_steps", "1"]
    argv = [*flags, "--output_dir", str(tmp_path / "out")]
    work = partial(count_held, argv, tmp_path)
    run = TrainingRun(work, cwd=repo, log=tmp_path / "log", processes=2)
    assert run.wait() == [0, 0], run.output()[-3000:]
    held, whole = zip(*(json.loads((tmp_path / f"held.{rank}").read_text()) for rank in (0, 1)), strict=True)
    assert sum(held) == whole[0] == whole[1]


def count_held(argv: list[str], folder: Path) -> None:
    """Train, and write how many elements of the weights this process holds, and how many there are."""
    parameters = list(fit(assemble(*parse_arguments(argv))).model.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters)
    counts = sum(each.to_local().numel() for each in parameters), sum(each.numel() for each in parameters)
    (folder / f"held.{os.environ['RANK']}").write_text(json.dumps(counts))


@pytest.mark.parametrize(
    ("config", "bits", "message"),
    [
        (
            {"zero_optimization": {"stage": 3}},
            4,
            "--bits 4 under ZeRO-3: .* use --deepspeed scripts/zero2.json",
        ),
        ({"zero_optimization": {"stage": 1}}, 16, "ZeRO stage 1 is not tested here"),
        ({}, 16, "ZeRO stage 0 is not tested here"),
        (
            {"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR"}},
            16,
            "entry 'scheduler' would",
        ),
        ({"zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"}}, 16, "entry 'optimizer' would"),
    ],
)
def test_a_deepspeed_file_that_trains_otherwise_is_refused(
    config: dict[str, object], bits: int, message: str
) -> None:
    (said,) = unsupported(bits=bits, fsdp=None, deepspeed=config)
    assert re.search(message, said)


@pytest.mark.parametrize(
    ("changed", "bits", "message"),
    [
        ({}, 8, "--bits 8 under FSDP: .* use --deepspeed scripts/zero2.json"),
        ({"cpu_offload": True}, 16, "cpu_offload True is not tested here"),
        ({"fsdp_version": 1}, 16, "fsdp_version 1 is not tested here"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, 16, "state_dict_type SHARDED_STATE_DICT is not"),
    ],
)
def test_fsdp_that_is_not_tested_is_refused(changed: JsonObject, bits: int, message: str) -> None:
    (said,) = unsupported(bits=bits, fsdp={**FSDP2, **changed}, deepspeed=None)
    assert re.search(message, said)


@pytest.mark.parametrize(("plugin", "code"), [(FSDP2, "no-fsdp"), (None, "fsdp-without-flag")])
def test_a_run_that_accelerate_would_not_share_out_ends(plugin: JsonObject | None, code: str) -> None:
    with raises_code(code):
        choose_fsdp(Accelerator(cpu=True), plugin)
