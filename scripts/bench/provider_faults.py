"""Let the demo's provider make mistakes in a round, clean it, and print how many of each kind were caught.

    python scripts/bench/provider_faults.py --requests 3000 --mistakes 0.3

`llava engine generate` and `llava engine clean --ask consistency` run against the provider on the loopback.
Fails if of one kind less than 95 % are caught, or more than 2 % of the good records are lost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from llava.command import run
from llava.data_engine.generation.bodies import Sampling, read_requests
from llava.files import read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "playground/demo"), str(ROOT / "tests")]

RULES = {
    "wrong letter": {"letter"},
    "wrong answer": {"inconsistent"},
    "leaked answer": {"leaked"},
    "two right options": {"four_options", "two_right_options", "schema"},
    "off type": {"off_type"},
    "exact duplicate": {"duplicate"},
    "near duplicate": {"duplicate"},
    # A copied question about another image is also wrong about this one.
    "benchmark look-alike": {"benchmark_question", "off_type", "inconsistent"},
    "hostile text": {"hostile_text"},
    "rubbish": {"unparsable"},
    "half JSON": {"unparsable"},
}
"""By kind of mistake, the rules that may catch it."""


def main() -> None:
    """Make the images, ask, clean, print the table."""
    from cleaning_faults import print_shares
    from provider import MODEL, read_provider, serve
    from tinyworld.layouts import ROUND_IMAGES, write_round_images, write_seed_bench
    from tinyworld.questions import TYPES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=3000)
    add("--mistakes", type=float, default=0.3, help="the share of the responses with a mistake (default 0.3)")
    add("--misreadings", type=float, default=0.005, help="of the second reader (default 0.005)")
    add("--seed", type=int, default=0, help="of the images, the questions and the mistakes (default 0)")
    add("--work", type=Path, help="an empty folder to work in and to keep")
    flags = parser.parse_args()
    with nullcontext(flags.work) if flags.work else tempfile.TemporaryDirectory() as work:
        data, folder = Path(work) / "data", Path(work) / "rounds/1"
        write_round_images(data, flags.seed, -(-flags.requests // len(TYPES)))
        write_seed_bench(data, flags.seed, 250)
        images = [row["image"] for _, row in read_jsonl((data / ROUND_IMAGES).with_suffix(".scenes.jsonl"))]
        write_jsonl(folder / "requests.jsonl", (_request(n, images, [*TYPES]) for n in range(flags.requests)))
        (folder / "round.toml").write_text(f"round = 1\nseed = {flags.seed}\n")
        provider = read_provider(data, flags.seed, mistakes=flags.mistakes, misreadings=flags.misreadings)
        with serve(provider) as url:
            environment = os.environ | {"OPENAI_BASE_URL": url, "LLAVA_ENGINE_MODEL": MODEL}
            paths = ["--image-root", str(data)]
            for step in (
                ["generate", str(folder), *paths],
                ["clean", str(folder), *paths, "--eval-root", str(data / "eval"), "--ask", "consistency"],
            ):
                command = [sys.executable, "-m", "llava.data_engine", *step]
                subprocess.run(command, env=environment, check=True)
        sampling = Sampling(MODEL, image_root=data)
        planted = {
            request.id: provider.answer(request.body(sampling, structured=True)).mistake
            for request in read_requests(folder / "requests.jsonl")
        }
        sys.exit(not print_shares(planted, RULES, folder / "rejected.jsonl"))


def _request(number: int, images: list[str], types: list[str]) -> dict[str, object]:
    """Return a row of requests.jsonl: each image is asked about once in each type."""
    kind, image = types[number % len(types)], images[number // len(types)]
    text = {"type": "text", "text": f"Write 1 question of the type {kind} about the image."}
    return {
        "id": f"r{number}",
        "round": 1,
        "type": kind,
        "image": image,
        "image_info": {},
        "seed": number,
        "schema": "questions",
        "messages": [{"role": "user", "content": [text, {"type": "image_path", "path": image}]}],
    }


if __name__ == "__main__":
    run(main)
