"""The folder in which `clients.py` runs other people's programs, with a tiny model, images and questions."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from client_runs import QUESTION
from PIL import Image

from llava.files import read_json, write_json, write_jsonl

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / "playground/demo"
COLOURS = ("red", "green", "blue", "white")
LIMIT_S = 400.0


class ClientError(Exception):
    """A program failed or gave another result than it should."""


class Workshop:
    """A temporary folder with the demo's model, images and questions, in which programs run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "llava-v1.5-tiny"
        self.images = root / "images"
        shutil.copytree(DEMO / "model", self.model)
        config = read_json(self.model / "config.json")
        write_json(self.model / "config.json", {**config, "mm_vision_tower": str(DEMO / "tower")})
        self.images.mkdir()
        for colour in COLOURS:
            Image.new("RGB", (60, 48), colour).save(self.images / f"{colour}.png")
        self.image = str(self.images / "red.png")
        asked = [
            {"question_id": number, "image": f"{colour}.png", "text": QUESTION, "category": "default"}
            for number, colour in enumerate(COLOURS)
        ]
        write_jsonl(root / "questions.jsonl", asked)
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "a colour"}]
        rows = [
            {"id": str(row["question_id"]), "image": row["image"], "conversations": turns} for row in asked
        ]
        write_json(root / "train.json", rows)
        write_json(root / "science.json", rows)
        self._write_table()

    def copy_language_model(self) -> Path:
        """Return a folder with the model's language model alone, as transformers writes it."""
        folder = self.root / "vicuna-tiny"
        if not folder.is_dir():
            shutil.copytree(DEMO / "model", folder)
            config = read_json(folder / "config.json")
            own = {name: config[name] for name in config if not name.startswith("mm_")}
            write_json(
                folder / "config.json", {**own, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
            )
        return folder

    def _write_table(self) -> None:
        lines = ["index\tquestion\thint\tA\tB\tC\tD\timage"]
        for number, colour in enumerate(COLOURS):
            picture = base64.b64encode((self.images / f"{colour}.png").read_bytes()).decode()
            lines.append(f"{number}\tWhich colour?\t\tred\tblue\t\t\t{picture}")
        (self.root / "mmbench.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def call(
        self, *command: object, python: str = sys.executable, package: Path = REPO, paths: Sequence[Path] = ()
    ) -> str:
        """Run a command here, with `package` as `llava`, and return what it printed.

        Raises:
            ClientError: It failed; the message is its last line.
        """
        try:
            ended = subprocess.run(
                [python, *map(str, command)], cwd=self.root, env=environment(package, *paths),
                capture_output=True, text=True, timeout=LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ClientError(f"took more than {LIMIT_S:.0f} s") from error
        if ended.returncode:
            lines = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
            raise ClientError(lines[-1] if lines else f"exit code {ended.returncode}")
        return ended.stdout

    def harness(self, kind: str, *arguments: object, **settings: str | Path | Sequence[Path]) -> str:
        """Run a function of client_runs.py in a process of its own."""
        return self.call(REPO / "scripts/bench/client_runs.py", kind, *arguments, **settings)  # type: ignore[arg-type]


def environment(*paths: Path) -> dict[str, str]:
    """Return the environment of a process that imports from `paths`."""
    joined = os.pathsep.join(map(str, paths))
    return {**os.environ, "PYTHONPATH": joined, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
