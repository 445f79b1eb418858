"""Ask vLLM before the engine, compare every answer with the engine's, and time it with and without the guard.

    OMP_NUM_THREADS=1 python scripts/bench/vllm_backend.py --model-path playground/demo/model

Needs vLLM in this environment. `LLAVA_TEST_DATA` gives the golden prompts, and real questions (GQA's) about
real photos; without it, made-up questions about the images of --images. Times are processor seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that its time is this process's
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from llava.command import run
from llava.errors import DataError
from llava.eval.backends import export_once
from llava.files import read_json, read_jsonl
from llava.image_reading import list_image_files
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import load
from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Reply, Request
from llava.infer.jobs.names import get_model_name_from_path
from llava.infer.jobs.prompting import prompt_of
from llava.infer.vllm.answerer import VllmAnswerer
from llava.infer.vllm.front import read_front
from llava.infer.vllm.offline import OfflineVllm

_MADE_UP = ("What is this?", "Describe the picture  in a few words.", "Is there a person?\nAnswer yes or no.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", default="playground/demo/model")
    add("--model-base")
    add("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    add("--device", default="auto")
    add("--images", type=Path, help="photos (default: the real ones of LLAVA_TEST_DATA)")
    add("--questions", type=int, default=60, help="how many beside the golden prompts")
    add("--an-image", type=int, default=3, help="questions an image")
    add("--tokens", type=int, default=8, help="the most tokens of an answer")
    add("--length", type=int, default=0, help="the most positions in vLLM (default: the model's)")
    flags = parser.parse_args()
    name = get_model_name_from_path(flags.model_path)
    choice = ModelChoice(flags.model_path, flags.model_base, name, flags.device, flags.dtype)
    loaded, front = load(choice), read_front(choice)
    generation = Generation(max_new_tokens=flags.tokens)
    requests = [*golden_prompts(flags.images), *real_questions(flags.images, flags.questions, flags.an_image)]
    engine = Engine(loaded, generation)
    ours, seconds = timed(lambda: dict(engine.answer(requests)))

    settings: dict[str, Any] = {"enforce_eager": True, "limit_mm_per_prompt": {"image": 2}}
    vllm = OfflineVllm(
        export_once(choice),
        dtype=flags.dtype,
        context_length=flags.length or front.context_length,
        settings=settings,
    )
    answerer = VllmAnswerer(front, vllm, generation, dtype=flags.dtype, exact=False)
    theirs, alone = timed(lambda: dict(answerer.answer(requests)))
    close = [index for index, reply in theirs.items() if (reply.lead or 0.0) < answerer.close_lead]
    again, more = timed(lambda: dict(Engine(loaded, generation).answer([requests[index] for index in close])))
    guarded = theirs | {close[index]: reply for index, reply in again.items()}
    sys.stdout.write("| answers by | processor s | asked again | different |\n| --- | --- | --- | --- |\n")
    for who, took, count, said in (
        ("engine", seconds, 0, ours),
        ("vLLM without the guard", alone, 0, theirs),
        ("vLLM with the guard", alone + more, len(close), guarded),
    ):
        differ = [index for index, reply in ours.items() if said[index].text != reply.text]
        sys.stdout.write(f"| {who} | {took:.1f} | {count} | {len(differ)} of {len(requests)} |\n")
        for index in differ:
            sys.stderr.write(f"{requests[index].name}: {ours[index].text!r}, {who}: {said[index].text!r}\n")
    sys.exit(any(guarded[index].text != reply.text for index, reply in ours.items()))


def timed(work: Callable[[], dict[int, Reply]]) -> tuple[dict[int, Reply], float]:
    """Return what the work returns, and the processor seconds that it took."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def golden_prompts(images: Path | None) -> list[Request]:
    """Return the golden prompts with at most two images, about photos; none without `LLAVA_TEST_DATA`."""
    root = os.environ.get("LLAVA_TEST_DATA")
    if root is None:
        return []
    prompts = [text for text in read_json(Path(root) / "golden/ii_tokenization.json")["prompts"] if text]
    photos = itertools.cycle(find_photos(images))
    return [
        Request(text, tuple(itertools.islice(photos, text.count("<image>"))), f"golden prompt {text[:60]!r}")
        for text in prompts
        if text.count("<image>") < 3
    ]


def real_questions(images: Path | None, count: int, an_image: int) -> list[Request]:
    """Return questions about photos, so many an image."""
    root = os.environ.get("LLAVA_TEST_DATA")
    if root is None:
        texts = list(itertools.islice(itertools.cycle(_MADE_UP), count))
    else:
        file = Path(root) / "realdata/gqa/llava_gqa_testdev_balanced.jsonl"
        texts = [row["text"] for _, row in itertools.islice(read_jsonl(file), count)]
    photos = find_photos(images)
    return [
        Request(
            prompt_of("v1", text, "<image>\n"),
            (photos[number // an_image % len(photos)],),
            f"question {number}: {text[:60]!r}",
        )
        for number, text in enumerate(texts)
    ]


def find_photos(images: Path | None) -> Sequence[ImageFile]:
    """Return the photos of a folder, by default the real ones of `LLAVA_TEST_DATA`."""
    if images is None and "LLAVA_TEST_DATA" not in os.environ:
        raise DataError("give --images, or LLAVA_TEST_DATA", code="missing-images")
    folder = images or Path(os.environ["LLAVA_TEST_DATA"]) / "realdata"
    found = [ImageFile(folder / name) for name in list_image_files(folder)]
    if not found:
        raise DataError(f"{folder}: holds no image", code="missing-images")
    return found


if __name__ == "__main__":
    run(main)
