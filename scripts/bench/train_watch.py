"""Run one training of ours, of ms-swift or of LLaMA-Factory, and note what its steps took.

    python scripts/bench/train_watch.py NOTES.json llava|swift|factory FLAGS...

`train_peers.py` starts it in each program's own environment, which needs nothing of this package. All three
train with transformers' Trainer, whose callbacks see each step.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, trainer

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch(TrainerCallback):
    """Notes each step's loss and processor seconds (of all threads), and the peak of resident memory.

    The first step is not timed: it starts what later ones have.
    """

    file: Path

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        _RESET.write_text("5")  # resets the peak

    def on_step_end(self, *_: object, **__: object) -> None:
        self._ends.append(time.process_time())

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_train_end(self, *_: object, **__: object) -> None:
        peak = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        notes = {
            "seconds": [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)],
            "losses": self._losses,
            "peak": int(peak[1]) * 1024 if peak else 0,
        }
        self.file.write_text(json.dumps(notes))


def load_llava() -> Callable[[], object]:
    from llava.train.train import train

    return train


def load_swift() -> Callable[[], object]:
    from swift.pipelines import sft_main
    from swift.template import TemplateMeta, register_template
    from swift.template.templates.llava import LlavaHfTemplate

    class AsOurs(LlavaHfTemplate):
        """Splits the text where ours does, so that the ids are equal: the newline is the question's own."""

        def replace_tag(self, *_: object, **__: object) -> list[str]:
            return ["<image>"]

    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    meta = TemplateMeta(
        "as_ours",
        prefix=["<s>"],
        prompt=["USER: {{QUERY}} ASSISTANT:"],
        chat_sep=["</s>"],
        suffix=["</s>"],
        system_prefix=["<s> {{SYSTEM}} "],
        default_system=system,
        template_cls=AsOurs,
    )
    register_template(meta)
    return sft_main


def load_factory() -> Callable[[], object]:
    from llamafactory.data.formatter import EmptyFormatter
    from llamafactory.data.template import TEMPLATES
    from llamafactory.train.tuner import run_exp

    TEMPLATES["llava"].format_prefix = EmptyFormatter(slots=[{"bos_token"}])  # which it lacks in 0.9.5
    return run_exp


def main() -> None:
    _, notes, program, *flags = sys.argv
    sys.argv[1:] = flags
    train = {"llava": load_llava, "swift": load_swift, "factory": load_factory}[program]()
    Watch.file = Path(notes)
    trainer.DEFAULT_CALLBACKS.append(Watch)  # not before: ms-swift has a list of its own
    train()


if __name__ == "__main__":
    main()
