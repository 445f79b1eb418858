"""What the comparison with other training programs states about its records and steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.prompts.labels import supervise
from llava.samples import read_samples
from llava.tokenizer import load_tokenizer


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts/bench"))
    import train_peers

    return train_peers


def test_records_have_the_lengths_that_the_table_shows(peers: ModuleType, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(peers.VOCABULARY)
    peers.write_records(tmp_path, "mix", 20)
    for sample, (ids, learned) in zip(
        read_samples(tmp_path / "ours.json"), peers.lengths_of("mix", 20), strict=True
    ):
        made = supervise(sample, conv_templates["v1"], tokenizer, max_length=None)
        assert abs(len(made.input_ids) - ids) <= 1
        assert sum(label != IGNORE_INDEX for label in made.labels) == learned
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert [each["conversations"] for each in theirs] == [
        each["conversations"] for each in json.loads((tmp_path / "ours.json").read_text())
    ]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_each_step_but_the_first_is_timed(peers: ModuleType, tmp_path: Path) -> None:
    import train_watch

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}

    train_watch.Watch.file = tmp_path / "notes.json"
    rows = [{"x": torch.ones(2), "labels": torch.tensor(3.0)}] * 2
    settings = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True, **settings)
    Trainer(Line(), arguments, train_dataset=rows, callbacks=[train_watch.Watch]).train()
    notes = json.loads((tmp_path / "notes.json").read_text())
    assert len(notes["seconds"]) == 2
    assert min(notes["seconds"]) > 0
    assert len(notes["losses"]) == 3
    assert notes["losses"] == sorted(notes["losses"], reverse=True)
    assert notes["peak"] > 10**8
