"""Serve the demo's world as a chat model would, on the loopback, and run a command that asks it.

    python playground/demo/provider.py --data playground/demo/work/data -- llava engine generate rounds/1

The command finds the server in OPENAI_BASE_URL and LLAVA_ENGINE_MODEL. With a real server's URL there, the
same command asks that server. Without a command, it serves until it is stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tinyworld.layouts import ROUND_IMAGES, SEED_BENCH
from tinyworld.provider import MISTAKES, CannotAnswer, Provider, own_wordings, read_scene

from llava.command import run
from llava.errors import DataError
from llava.files import read_json, read_jsonl

MODEL = "tinyworld"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder that generate.py --rounds wrote")
    add("--seed", type=int, default=0, help="of the questions and the mistakes (default 0)")
    add("--mistakes", type=_share, default=0.0, help="the share of the responses with a mistake (default 0)")
    add("--misreadings", type=_share, default=0.0, help="the share of readings that are wrong (default 0)")
    add("--kinds", nargs="+", choices=MISTAKES, help="of the mistakes (default: all)")
    add("--port", type=int, default=0, help="default: any free one")
    add("command", nargs="*", help="what to run while it serves")
    arguments = parser.parse_args()
    provider = read_provider(
        arguments.data, arguments.seed, mistakes=arguments.mistakes, misreadings=arguments.misreadings,
        kinds=arguments.kinds,
    )  # fmt: skip
    with serve(provider, arguments.port) as url:
        if not arguments.command:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            threading.Event().wait()
        names = {"OPENAI_BASE_URL": url, "LLAVA_ENGINE_MODEL": MODEL}
        sys.exit(subprocess.run(arguments.command, env=os.environ | names, check=False).returncode)


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; wanted 0 to 1")
    return share


def read_provider(
    data: Path, seed: int, *, mistakes: float = 0.0, misreadings: float = 0.0,
    kinds: Sequence[str] | None = None,
) -> Provider:  # fmt: skip
    """The provider of the world in a folder of generate.py's.

    Raises:
        DataError: The folder has no images for rounds.
    """
    path = (data / ROUND_IMAGES).with_suffix(".scenes.jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file; generate.py --rounds N writes it", code="missing-file")
    scenes = {_sha256(data / row["image"]): read_scene(row) for _, row in read_jsonl(path)}
    benchmark = data / SEED_BENCH / "SEED-Bench.json"
    questions = own_wordings(read_json(benchmark)["questions"]) if benchmark.is_file() else []
    return Provider(scenes, seed, mistakes, misreadings, questions, kinds)


@contextmanager
def serve(provider: Provider, port: int = 0) -> Iterator[str]:
    """Yield the URL that the provider is served at."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._send(200, _completion(body, provider.answer(body).text))
            except CannotAnswer as error:
                self._send(400, {"error": {"message": str(error), "code": None}})

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt, answer = len(json.dumps(body["messages"])) // 4, len(text) // 4
    return {
        "id": "tinyworld",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", MODEL),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    run(main)
