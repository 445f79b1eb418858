"""Export a model, serve it with `vllm serve`, and answer a round's requests by `llava engine generate`.

    python scripts/bench/vllm_serve.py --model-path playground/demo/model --images photos \
        --vllm vllm-env/bin/vllm

A real server for the data engine's client: images attached, structured output, and a second run that asks for
nothing. What a tiny model says is nonsense, so only its form is checked. vLLM has an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from llava.command import run
from llava.errors import DataError
from llava.files import read_jsonl, write_jsonl
from llava.image_reading import list_image_files

NAME = "served"


def main() -> None:
    """Export, serve, ask twice, and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", type=Path, default=Path("playground/demo/model"))
    add("--images", type=Path, required=True, help="a folder of images to ask about")
    add("--vllm", type=Path, required=True, help="the vllm program of its environment")
    add("--requests", type=int, default=20)
    add("--start", type=float, default=600, help="seconds that the server may take to start (default 600)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        export, folder = Path(work) / "hf", Path(work) / "rounds/1"
        command = [
            "-m",
            "llava.cli",
            "export",
            "--model-path",
            str(flags.model_path),
            "--output",
            str(export),
        ]
        subprocess.run([sys.executable, *command], check=True)
        images = list_image_files(flags.images)
        write_jsonl(folder / "requests.jsonl", [_request(n, images) for n in range(flags.requests)])
        with serve(flags.vllm, export, Path(work), flags.start) as url:
            for _ in range(2):
                command = ["-m", "llava.data_engine", "generate", str(folder), "--max-tokens", "48"]
                command += ["--image-root", str(flags.images), "--base-url", url, "--model", NAME]
                subprocess.run([sys.executable, *command], check=True)
        texts = [row["text"] for _, row in read_jsonl(folder / "responses.jsonl")]
    structured = sum(text.startswith("{") for text in texts)
    sys.stdout.write(f"{len(texts)} of {flags.requests} answered, {structured} as JSON\n")
    sys.exit(not len(texts) == structured == flags.requests)


@contextmanager
def serve(vllm: Path, model: Path, work: Path, patience: float) -> Iterator[str]:
    """Serve a model during the block; yield the base URL.

    Raises:
        DataError: The server ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(_alias(vllm, work)),
    }
    command = [str(vllm), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--served-model-name",
        NAME,
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "512",
    ]
    url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + patience
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
        with urlopen(f"{url}/models", timeout=5):
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
