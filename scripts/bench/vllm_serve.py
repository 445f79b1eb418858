"""Export a model, serve it with `vllm serve`, and let the data engine and `llava eval` ask the server.

    python scripts/bench/vllm_serve.py --model-path playground/demo/model --vllm vllm-env/bin/vllm \
        --images photos --eval-root playground/demo/work/data/eval --benchmark seed

With --images, `llava engine generate` asks about them: structured output, and a second run that asks for
nothing. What a tiny model says is nonsense, so only its form is checked. With --benchmark, `llava eval` asks
the server, is killed on the way, goes on, and must end with the answers that it gives without a server.
vLLM has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from llava.benchmarks.base import EVAL_ROOT
from llava.command import run
from llava.errors import DataError, SettingsError
from llava.files import read_jsonl, write_jsonl
from llava.image_reading import list_image_files

NAME = "served"
LLAVA = (sys.executable, "-m", "llava.cli")


def main() -> None:
    """Export, serve, ask twice, and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", type=Path, default=Path("playground/demo/model"))
    add("--images", type=Path, help="a folder of images that the data engine asks about")
    add("--eval-root", type=Path, default=EVAL_ROOT, help="holds the benchmark's folder")
    add("--benchmark", help="a benchmark whose answers are compared")
    add("--vllm", type=Path, required=True, help="the vllm program of its environment")
    add("--requests", type=int, default=20)
    add("--start", type=float, default=600, help="seconds that the server may take to start (default 600)")
    flags = parser.parse_args()
    if not (flags.images or flags.benchmark):
        raise SettingsError("nothing to ask; give --images, --benchmark, or both", code="nothing-to-do")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        export = ["export", "--model-path", str(flags.model_path), "--output", str(work / "hf")]
        subprocess.run([*LLAVA, *export], check=True)
        began = time.monotonic()
        with serve(flags.vllm, work / "hf", work, flags.start) as url:
            sys.stdout.write(f"the server answers after {time.monotonic() - began:.0f} s\n")
            right = [generate(url, work / "rounds/1", flags.images, flags.requests)] if flags.images else []
            right += [compare_answers(url, flags)] if flags.benchmark else []
    sys.exit(not all(right))


def generate(url: str, folder: Path, images: Path, count: int) -> bool:
    """Answer a round's requests twice; return whether all were answered as their schema says."""
    names = list_image_files(images)
    write_jsonl(folder / "requests.jsonl", [_request(n, names) for n in range(count)])
    command = ["engine", "generate", str(folder), "--max-tokens", "48"]
    command += ["--image-root", str(images), "--base-url", f"{url}/v1", "--model", NAME]
    for _ in range(2):
        subprocess.run([*LLAVA, *command], check=True)
    texts = [row["text"] for _, row in read_jsonl(folder / "responses.jsonl")]
    structured = sum(text.startswith("{") for text in texts)
    sys.stdout.write(f"{len(texts)} of {count} answered, {structured} as JSON\n")
    return len(texts) == structured == count


def compare_answers(url: str, flags: argparse.Namespace) -> bool:
    """Answer a benchmark by the server, killed on the way, and by the engine; return whether they agree."""
    command = [*LLAVA, "eval", flags.benchmark, "--model-path", str(flags.model_path), "--dtype", "float32"]
    command += ["--eval-root", str(flags.eval_root), "--steps", "prepare,answer,merge"]
    named = ("compared-engine", "compared-server")
    engine, server = ([*command, "--name", name] for name in named)
    server += ["--backend", url]
    subprocess.run([*engine, "--overwrite"], check=True)
    wanted = _read_answers(flags.eval_root, named[0], "merge.jsonl")
    with subprocess.Popen([*server, "--overwrite"]) as killed:
        kept: dict[Any, str] = {}
        while killed.poll() is None and len(kept) < len(wanted) // 2:
            time.sleep(0.05)
            kept = _read_answers(flags.eval_root, named[1], "journal/*.jsonl")
        killed.kill()
    kept = _read_answers(flags.eval_root, named[1], "journal/*.jsonl")
    subprocess.run(server, check=True)
    found = _read_answers(flags.eval_root, named[1], "merge.jsonl")
    different = sum(found.get(key) != text for key, text in wanted.items())
    sys.stdout.write(
        f"{len(found)} of {len(wanted)} answered, {len(kept)} of them before the kill; {different} differ "
        "from the engine's\n"
    )
    return 0 < len(kept) < len(wanted) and found.keys() == wanted.keys() and not different


def _read_answers(root: Path, name: str, pattern: str) -> dict[Any, str]:
    """Return the answers in files of a model's folder; a line that is still being written is left out."""
    lines = [
        line
        for path in root.glob(f"*/answers/{name}/{pattern}")
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    rows = [row.get("row", row) for row in rows]  # a journal's rows are one level down
    return {row["question_id"]: row["text"] for row in rows}


@contextmanager
def serve(vllm: Path, model: Path, work: Path, patience: float) -> Iterator[str]:
    """Serve a model during the block; yield the address.

    Raises:
        DataError: The server ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": f"{_alias(vllm, work)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [str(vllm), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--served-model-name",
        NAME,
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "1024",
        "--enable-scale-out",
    ]
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + patience
    with (work / "vllm.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        try:
            while not _answers(url):
                if server.poll() is not None or time.monotonic() > end:
                    last = (work / "vllm.log").read_text().splitlines()[-1:]
                    raise DataError(f"{vllm}: no server ({' '.join(last)})", code="no-server")
                time.sleep(2)
            yield url
        finally:
            server.terminate()
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/v1/models", timeout=5):
            return True
    except (URLError, TimeoutError, ConnectionError):
        return False


def _alias(vllm: Path, work: Path) -> Path:
    """Return a folder where `vllm-cpu` is called vllm: it looks itself up by that name, and for "cpu"."""
    folder = work / "alias"
    for metadata in vllm.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info/METADATA"):
        version = metadata.parent.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        alias = folder / f"vllm-{version}+cpu.dist-info"
        alias.mkdir(parents=True)
        text = metadata.read_text().replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
        text = text.replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
        (alias / "METADATA").write_text(text)
    return folder


def _request(number: int, images: list[str]) -> dict[str, object]:
    image = images[number % len(images)]
    text = {"type": "text", "text": "Write a question with four options about the image."}
    return {
        "id": f"r{number}",
        "round": 1,
        "seed": number,
        "schema": "questions",
        "messages": [{"role": "user", "content": [text, {"type": "image_path", "path": image}]}],
    }


if __name__ == "__main__":
    run(main)
