"""Steps of a round that are killed, or meet a full disk: every file is the old one or the new one, whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from llava import temporary
from llava.command import run
from llava.data_engine.__main__ import main
from llava.data_engine.loop.plan import make_plan
from llava.data_engine.loop.pool import make_pool
from llava.data_engine.loop.score import score_round
from llava.data_engine.loop.split import make_split
from llava.files import read_jsonl, write_json, write_jsonl
from llava.scoring.metrics import write_scores
from support.engine_rounds import record_of, run_of

Snapshot = dict[str, bytes]


class Steps:
    """A planned round, and its steps from the requests to the report as commands."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "rounds/1"
        base = write_scores(root / "m0", run_of())
        make_split(root / "rounds", run_of())
        make_pool(self.folder, base, changes=["requests=12"])
        make_plan(self.folder)
        for number in range(20):
            path = root / f"data/images/{number:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 12, 90, 200)).save(path)
        scenes = [{"image": f"{number:06}.png", "thing": number} for number in range(20)]
        write_jsonl(root / "scenes.jsonl", scenes)
        said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
        write_json(root / "base.json", [{"id": f"b{number}", "conversations": said} for number in range(9)])

    def answer(self) -> None:
        """Answer the requests, and score the round's model: what other programs do in between."""
        rows = [row for _, row in read_jsonl(self.folder / "requests.jsonl")]
        texts = [json.dumps(record_of("", number)) if number % 4 else "?" for number in range(len(rows))]
        answers = [
            {"id": row["id"], "text": text, "cost": 0.01} for row, text in zip(rows, texts, strict=True)
        ]
        write_jsonl(self.folder / "responses.jsonl", answers)
        better = run_of({"Text Understanding": 0.9}, model="m1")
        score_round(self.folder, write_scores(self.root / "m1", better))

    def command(self, step: str, variant: int) -> list[str]:
        """The step's command, with one of two settings of which each gives other files."""
        root, folder = self.root, str(self.folder)
        return {
            "requests": [
                *("requests", folder, "--images", f"{root}/data/images", "--image-root", f"{root}/data"),
                *("--scenes", f"{root}/scenes.jsonl", "--eval-root", f"{root}/none"),
                *("--questions", str(variant + 1)),
            ],
            "clean": ["clean", folder, "--eval-root", f"{root}/none", *["--unchecked"] * variant],
            "mix": [
                *("mix", "--round", folder, "--base", f"{root}/base.json", "--output", f"{root}/mix.json"),
                *("--modes", ("mc", "da")[variant]),
            ],
            "report": ["report", f"{root}/rounds", *["--final"] * variant],
        }[step]  # fmt: skip

    def run_each(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """Run the first variant of each step here, and yield its name; children then import nothing anew."""
        for step in ("requests", "clean", "mix", "report"):
            if step == "clean":
                self.answer()
            monkeypatch.setattr(sys, "argv", ["llava engine", *self.command(step, 0)])
            main()
            yield step

    def files(self) -> Snapshot:
        """All files but those that are being written."""
        paths = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".saving")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}

    def restore(self, files: Snapshot) -> None:
        for path in [path for path in self.root.rglob("*") if path.is_file()]:
            path.unlink()
        for name, content in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(content)


def in_child(arguments: list[str], prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run a command in a copy of this process; return its exit code (negative: a signal) and its stderr."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(write_end, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
            sys.argv = ["llava engine", *arguments]
            temporary._remove_leftovers.cache_clear()  # a process of its own has looked into no folder
            prepare()
            run(main)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def die_at_rename(number: int) -> None:
    """Kill the process where it would publish its file of this number, from 0."""
    replace, seen = os.replace, iter(range(number))

    def counted(*arguments: object, **named: object) -> None:
        if next(seen, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **named)  # type: ignore[arg-type]

    os.replace = counted


def die_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_step_that_is_killed_leaves_whole_files_and_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Steps(tmp_path)
    for step in world.run_each(monkeypatch):
        old, start = world.files(), time.perf_counter()
        assert in_child(world.command(step, 1))[0] == 0
        new, seconds = world.files(), time.perf_counter() - start
        assert old != new
        killed = 0
        for kill in [
            partial(die_after, seconds / 2),
            *(partial(die_at_rename, number) for number in range(4)),
        ]:
            world.restore(old)
            code, said = in_child(world.command(step, 1), kill)
            assert code <= 0, said
            killed += code < 0
            found = world.files()
            torn = [name for name, content in found.items() if content not in (old.get(name), new.get(name))]
            assert not torn, (step, torn)
            assert old.keys() <= found.keys()
            if code < 0:
                assert in_child(world.command(step, 1))[0] == 0
            assert world.files() == new, step
            assert not list(world.root.rglob("*.saving"))
        assert killed >= 1, step  # at the first rename; the timer may come too late
        world.restore(old)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_full_disk_is_named_and_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Steps(tmp_path)
    for step in world.run_each(monkeypatch):
        old = world.files()
        full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200, 200))
        code, said = in_child(world.command(step, 1), full)
        assert code == 2, said
        (line,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert str(world.root) in line
        assert ".saving" not in line
        assert world.files() == old, step
