"""Kill an evaluation at random moments many times, and check that no answer is lost, doubled or mixed.

    python scripts/bench/kill_loop.py --kills 100
    python scripts/bench/kill_loop.py --kills 6 --model-path ADAPTER --model-base BASE

A made-up SEED-Bench is answered once in peace. Then `scripts/v1_5/eval/seed.sh` is started over and over with
one to three shards; at a random moment one shard, or everything at once as by a power cut, is killed, and
sometimes the last answer on disk is torn. Whatever is merged must equal the undisturbed answers to the byte,
and a script that lost a shard must not succeed without them. Exit code 1 when that does not hold. A hundred
kills of a tiny model take about 20 minutes on two idle CPU cores; `--minutes` ends it earlier on busy ones.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from llava.command import run
from llava.files import write_json
from llava.log import progress

REPO = Path(__file__).resolve().parents[2]
NAME = "killed"


def write_seed_bench(root: Path, count: int) -> None:
    """Write `count` questions about four plain images to `root`/seed_bench."""
    from PIL import Image

    folder = root / "seed_bench/SEED-Bench-image"
    folder.mkdir(parents=True)
    colours = ("red", "green", "blue", "white")
    for colour in colours:
        Image.new("RGB", (64, 48), colour).save(folder / colour, "png")
    rows = [
        {
            **{f"choice_{letter}": colour for letter, colour in zip("abcd", colours, strict=True)},
            "question_id": str(number),
            "question_type_id": 1,
            "data_type": "image",
            "data_id": colours[number % 4],
            "question": f"Which colour has picture {number}?",
            "answer": "ABCD"[number % 4],
        }
        for number in range(count)
    ]
    write_json(root / "seed_bench/SEED-Bench.json", {"questions": rows, "question_type": {"Colour": 1}})


class Loop:
    """Attempts on one benchmark folder, compared with `wanted` from an undisturbed run."""

    def __init__(self, root: Path, flags: argparse.Namespace) -> None:
        self.answers = root / "seed_bench/answers" / NAME
        self.merged = self.answers / "merge.jsonl"
        self.wanted = b""
        self.faults: list[str] = []
        self.attempts = 0
        self.counts: Counter[str] = Counter()
        self._random = random.Random(flags.seed)
        self._model = flags.model_path
        self._settings = {"EVAL_ROOT": str(root), "MODEL_BASE": flags.model_base}
        self._settings |= {"PYTHON": os.environ.get("PYTHON", sys.executable)}
        self._settings |= {"CUDA_VISIBLE_DEVICES": "", "ANSWER_FLAGS": f"--max_new_tokens {flags.tokens}"}

    def start(self, shards: int) -> subprocess.Popen[bytes]:
        """Start the script with `shards` processes, in its own process group."""
        command = ["bash", str(REPO / "scripts/v1_5/eval/seed.sh"), self._model, NAME]
        environment = {**os.environ, **self._settings, "SHARDS": str(shards)}
        return subprocess.Popen(
            command, env=environment, cwd=REPO, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self) -> None:
        """Answer the rest without a kill; the result must equal the first one."""
        process = self.start(self._random.randint(1, 3))
        _, error = process.communicate()
        if process.returncode:
            self.faults.append(
                f"an undisturbed run exited with {process.returncode}: {error.decode()[-300:]}"
            )
        self.check()

    def kill_once(self, longest_s: float) -> None:
        """Start, wait for a random moment, kill, and check."""
        self.attempts += 1
        process = self.start(self._random.randint(1, 3))
        deadline = time.monotonic() + self._random.uniform(0.0, longest_s)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        shards = _children(process.pid)
        one = bool(shards) and self._random.random() < 0.6
        if process.poll() is not None:
            self.counts["ended before the kill"] += 1
        elif one:
            self.counts["one shard killed"] += 1
            os.kill(self._random.choice(shards), signal.SIGKILL)
        else:
            self.counts["all killed"] += 1
            os.killpg(process.pid, signal.SIGKILL)
        _, error = process.communicate()
        if one and process.returncode == 0 and not self.merged.is_file():
            self.faults.append("the script succeeded without merged answers")
        if b"Traceback" in error:
            self.faults.append(f"a traceback: {error.decode()[-300:]}")
        self.check()
        self._tear()

    def check(self) -> None:
        """Check that merged answers, if any, equal those of the undisturbed run."""
        if self.merged.is_file() and self.merged.read_bytes() != self.wanted:
            self.faults.append(f"{self.merged} differs from the undisturbed answers")
        if self.merged.is_file():
            self.counts["complete"] += 1
            shutil.rmtree(self.answers)

    def _tear(self) -> None:
        """Cut the last line on disk in some attempts."""
        files = [path for path in self.answers.glob("journal/*.jsonl") if path.stat().st_size > 40]
        if files and self._random.random() < 0.3:
            path = self._random.choice(files)
            os.truncate(path, path.stat().st_size - self._random.randint(1, 30))
            self.counts["last line torn"] += 1


def _children(pid: int) -> list[int]:
    """Return the answering processes of the script `pid`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if parent == pid and "llava.eval" in command:
            found.append(int(folder.name))
    return found


def main() -> None:
    """Kill as often as asked, then print the outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no more kills after that")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=20, help="at most, for each answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-path", default=str(REPO / "playground/demo/model"))
    parser.add_argument("--model-base", default="")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_seed_bench(Path(folder), flags.questions)
        loop = Loop(Path(folder), flags)
        began = time.monotonic()
        process = loop.start(1)
        _, error = process.communicate()
        if process.returncode:
            sys.exit(f"the undisturbed run exited with {process.returncode}: {error.decode()}")
        longest_s = time.monotonic() - began
        loop.wanted = loop.merged.read_bytes()
        shutil.rmtree(loop.answers)
        for _ in progress(range(flags.kills), name="kills", total=flags.kills):
            loop.kill_once(longest_s)
            if time.monotonic() - began > 60 * flags.minutes:
                break
        loop.finish()
    told = ", ".join(f"{count} {name}" for name, count in sorted(loop.counts.items()))
    sys.stdout.write(f"{loop.attempts} attempts: {told}; {len(loop.faults)} faults\n")
    if loop.faults:
        sys.exit("\n".join(loop.faults))


if __name__ == "__main__":
    run(main)
