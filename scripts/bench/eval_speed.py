"""Measure answering speed: the engine against `eval_baselines`, of which one is the original's loop.

All run in turn in one call, on the same machine, random weights, pictures and questions; the engine's answers
must be the loop's (those of plain batches if there is no loop). Questions come in the shapes of the
benchmarks: so many about one image, so long. They are the real ones where `LLAVA_TEST_DATA` has the files,
else random words in the same numbers. Answer lengths are forced, because random weights never end an answer
by themselves, except in the shape `mixed`, where some tokens end it.

    OMP_NUM_THREADS=1 python scripts/bench/eval_speed.py
    python scripts/bench/eval_speed.py --device cuda --shape 7b --scale 10
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import random
import re
import statistics
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from eval_baselines import PlainBatches, Vllm, ask_one_at_a_time, find_vllm_obstacle
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.command import run
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import Loaded, keep_freed_memory
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.placement import avoid_slow_kernels
from llava.model.multimodal_encoder.builder import write_vision_model
from llava.model.onednn.layers import use_onednn
from llava.prompts.encode import tokenizer_image_token
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX
from llava.tokenizer import load_tokenizer

WORD = f"\n{SHORT_SUFFIX}"
WORDS = "what is the color of that small dog left to a man who holds an umbrella in front of two cars"
LETTER = f"\n{LETTER_SUFFIX}"
COLUMNS = (
    *("shape", "questions an image", "ids a prompt", "tokens an answer", "texts", "loop /s", "engine /s"),
    *("ratio", "ratio of processor time", "answers agree", "different answers", "asked again"),
    *("plain batches of 8 / engine", "best plain batch / engine", "vLLM / engine"),
)
SIDES = ("loop", "plain", "vllm")
# Answers of half precision may differ where even one prompt at a time is a matter of rounding.
AGREEMENT = {"float32": 1.0, "float16": 0.999, "bfloat16": 0.999}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a language model and a vision tower: width, layers, heads, feed-forward width."""

    language: tuple[int, int, int, int]
    vision: tuple[int, int, int, int]
    vocabulary: int = 32000


SIZES = {
    "tiny": Sizes((64, 2, 4, 172), (32, 3, 2, 64)),
    "small": Sizes((512, 12, 8, 1408), (256, 12, 4, 1024)),
    "7b": Sizes((4096, 32, 32, 11008), (1024, 24, 16, 4096)),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a benchmark asks: questions per image in turn, words per question, appended prompt.

    `read` gives the real questions, image by image, from a folder of real data. `tokens` is how long answers
    are at most, `images` how many images are asked about. With `stops`, about one in so many tokens ends an
    answer.
    """

    counts: tuple[int, ...]
    words: tuple[int, int]
    tail: str
    tokens: int
    images: int
    read: Callable[[Path], Iterable[list[str]]] | None = None
    stops: int | None = None


def read_jsonl(path: Path) -> list[list[str]]:
    """Read the texts of a LLaVA question file, grouped by image."""
    by_image = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_image[row["image"]].append(row["text"])
    return list(by_image.values())


def read_mmbench(folder: Path) -> list[list[str]]:
    """Read the questions of an MMBench answer sheet, circular copies grouped."""
    import pandas as pd

    table = pd.read_excel(folder / "mmbench/answers_upload/llava-v1.5-7b.xlsx")
    by_image = defaultdict(list)
    for row in table.to_dict("records"):
        options = [f"{letter}. {row[letter]}" for letter in "ABCD" if isinstance(row[letter], str)]
        by_image[row["index"] % 1_000_000].append("\n".join([row["question"], *options]) + LETTER)
    return list(by_image.values())


KINDS = {
    "gqa": Kind(
        (31, 32, 32), (6, 12), WORD, 4, 3, lambda f: read_jsonl(f / "gqa/llava_gqa_testdev_balanced.jsonl")
    ),
    "vqav2": Kind((3, 3, 3, 3, 3, 3, 3, 3, 3, 2), (4, 9), WORD, 4, 10),
    "mmbench": Kind((4, 4, 3), (40, 60), LETTER, 2, 8, read_mmbench),
    "mme": Kind((2,), (8, 20), WORD, 4, 12, lambda f: read_jsonl(f / "mme/llava_mme.jsonl")),
    "one": Kind((1,), (5, 12), WORD, 4, 16),
    "one-32": Kind((1,), (5, 12), "", 32, 16),
    "one-128": Kind((1,), (5, 12), "", 128, 16),
    "mixed": Kind((1,), (5, 12), "", 256, 32, stops=50),
}


def questions(kind: Kind, count: int) -> tuple[list[list[str]], str]:
    """Return texts about each of `count` images, and where they come from.

    Of the real ones a seeded sample is taken whose number of questions an image is near the mean of all.
    """
    draw = random.Random(0)
    root = Path(os.environ.get("LLAVA_TEST_DATA", "")) / "realdata"
    if kind.read is not None and root.is_dir():
        real = list(kind.read(root))
        mean = sum(map(len, real)) / len(real)
        samples = [draw.sample(real, min(count, len(real))) for _ in range(200)]
        return min(samples, key=lambda s: abs(sum(map(len, s)) / len(s) - mean)), "real"
    lengths = itertools.islice(itertools.cycle(kind.counts), count)
    return [
        [
            " ".join(draw.choice(WORDS.split()) for _ in range(draw.randint(*kind.words))) + "?" + kind.tail
            for _ in range(length)
        ]
        for length in lengths
    ], "made up"


class PieceTokenizer:
    """A stand-in for LLaMA's tokenizer where it is missing: four letters are a token."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str) -> Any:
        pieces = re.findall(r"\w{1,4}|[^\w ]", text)
        return SimpleNamespace(input_ids=[1, *(3 + zlib.crc32(piece.encode()) % 31997 for piece in pieces)])

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def build(sizes: Sizes, device: str, dtype: torch.dtype, folder: Path) -> Loaded:
    """Build a model of random weights; its tower is first written to `folder`."""
    avoid_slow_kernels()
    torch.manual_seed(0)
    width, layers, heads, inner = sizes.vision
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            image_size=336,
            patch_size=14,
        )
    )
    write_vision_model(clip, folder)
    side = {"height": 336, "width": 336}
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side).save_pretrained(folder)
    width, layers, heads, inner = sizes.language
    config = LlavaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=inner,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=4096,
        initializer_range=1.8 / width**0.5,  # wide enough that answers depend on the question
        mm_vision_tower=str(folder),
        mm_hidden_size=sizes.vision[0],
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        image_aspect_ratio="pad",
    )
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlavaLlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    # A trained model is surer of its next token than random weights are.
    model.lm_head.weight.data *= 8
    tower = model.get_vision_tower()
    assert tower is not None
    tower.load_model(dtype=dtype)
    model.to(device).eval()
    vocabulary = Path(os.environ.get("LLAVA_TEST_DATA", "")) / "golden/tokenizer_llama"
    tokenizer = load_tokenizer(vocabulary, legacy=True) if vocabulary.is_dir() else PieceTokenizer()
    return Loaded(tokenizer, model, tower.image_processor, 4096)


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Make blank images of a photo's size."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        small = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def timed(work: Callable[[], list[str]], device: torch.device) -> tuple[list[str], float, float]:
    """Return what `work` returns, its seconds, and the processor time of all threads.

    The latter tell the same on a machine that others use, too.
    """
    began, began_cpu = time.perf_counter(), time.process_time()
    said = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return said, time.perf_counter() - began, time.process_time() - began_cpu


def compare(
    loaded: Loaded,
    quick: Loaded,
    plain: PlainBatches | None,
    vllm: Vllm | None,
    name: str,
    flags: argparse.Namespace,
    folder: Path,
) -> bool:
    """Measure one kind of benchmark and print its line; return whether the answers agree."""
    kind = KINDS[name]
    texts, origin = questions(kind, max(1, round(kind.images * flags.scale)))
    pictures = make_pictures(folder, len(texts))
    requests = [
        Request(prompt_of("vicuna_v1", text, "<image>\n"), (ImageFile(picture),))
        for picture, asked in zip(pictures, texts, strict=True)
        for text in asked
    ]
    random.Random(1).shuffle(requests)  # as in the files, an image's questions are not side by side
    # A token that is never chosen, or one in so many.
    vocabulary = loaded.model.config.vocab_size
    stops = list(range(5, vocabulary, kind.stops)) if kind.stops else [vocabulary]
    for asked in (loaded, quick):
        asked.model.generation_config.eos_token_id = stops
    engine = Engine(quick, Generation(max_new_tokens=kind.tokens), exact=flags.exact)

    def ask_engine(some: Sequence[Request]) -> list[str]:
        found = dict(engine.answer(some))
        return [found[index].text for index in range(len(some))]

    sides: dict[str, Callable[[Sequence[Request]], list[str]]] = {"engine": ask_engine}
    if "loop" in flags.against:
        keep = 0 if flags.all_logits else 1
        sides["loop"] = lambda some: ask_one_at_a_time(loaded, some, kind.tokens, keep)
    if plain:
        for size in flags.batches:
            sides[f"plain {size}"] = partial(plain.ask, tokens=kind.tokens, size=size)
    if vllm:
        sides["vllm"] = partial(vllm.ask, tokens=kind.tokens)
    said: dict[str, list[str]] = {}
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for ask in sides.values():
        ask(requests[:2])
    for _ in range(flags.rounds):
        for side, ask in sides.items():
            said[side], *spent = timed(partial(ask, requests), loaded.device)
            times[side].append((spent[0], spent[1]))
    middle = {
        side: [statistics.median(column) for column in zip(*each, strict=True)]
        for side, each in times.items()
    }
    fast, fast_cpu = middle.pop("engine")
    wanted = next((said[side] for side in sides if side != "engine"), said["engine"])
    agreeing = sum(a == b for a, b in zip(said["engine"], wanted, strict=True))
    ids = [len(tokenizer_image_token(request.prompt, loaded.tokenizer)) for request in requests]
    counter = 1 if loaded.device.type == "cpu" else 0
    ratios = {side: time[counter] / (fast, fast_cpu)[counter] for side, time in middle.items()}
    cells = [name, f"{len(requests) / len(pictures):.1f}", f"{sum(ids) / len(ids):.0f}"]
    cells += [f"1 to {kind.tokens}" if kind.stops else str(kind.tokens), origin]
    slow = middle["loop"][0] if "loop" in middle else math.nan
    cells += [f"{len(requests) / slow:.2f}", f"{len(requests) / fast:.2f}", f"{slow / fast:.2f}"]
    cells.append(f"{ratios['loop']:.2f}" if "loop" in ratios and counter else "-")
    cells += [f"{agreeing} of {len(requests)}", str(len(set(wanted))), str(engine.asked_again)]
    batches = {
        side.removeprefix("plain "): ratio for side, ratio in ratios.items() if side.startswith("plain ")
    }
    best = min(batches, key=batches.__getitem__, default="")
    cells.append(f"{batches['8']:.2f}" if "8" in batches else "-")
    cells.append(f"{batches[best]:.2f} ({best})" if best else "-")
    cells.append(f"{ratios['vllm']:.2f}" if vllm else find_vllm_obstacle(loaded) or "not asked")
    print_row(*cells)
    return agreeing >= AGREEMENT[flags.dtype] * len(requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(AGREEMENT), help="default: float16 on cuda, else float32")
    parser.add_argument("--shape", choices=list(SIZES), default="small")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer images")
    parser.add_argument("--against", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--batches", nargs="+", type=int, default=[8], help="sizes of plain batches")
    parser.add_argument("--rounds", type=int, default=1, help="of which the medians are shown")
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--all-logits",
        action="store_true",
        help="the loop computes logits of the whole prompt, as transformers 4.37 did; default: the last only",
    )
    flags = parser.parse_args()
    flags.dtype = flags.dtype or ("float16" if flags.device.startswith("cuda") else "float32")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = build(SIZES[flags.shape], flags.device, getattr(torch, flags.dtype), folder)
        print(f"{flags.shape} model, {flags.device}, {flags.dtype}, {torch.get_num_threads()} threads\n")
        print_row(*COLUMNS)
        print_row(*["---"] * len(COLUMNS))
        plain = PlainBatches(loaded) if "plain" in flags.against else None
        quick = loaded
        if loaded.device.type == "cpu":  # what `load` does, on weights of its own
            quick = replace(loaded, model=copy.deepcopy(loaded.model))
            use_onednn(quick.model)
        is_asked = "vllm" in flags.against and find_vllm_obstacle(loaded) is None
        vllm = Vllm(loaded, folder) if is_asked else None
        keep_freed_memory()  # again: starting vLLM in this process undoes it
        agree = [compare(loaded, quick, plain, vllm, kind, flags, folder) for kind in flags.kinds]
    if not all(agree):
        sys.exit("the answers differ")


if __name__ == "__main__":
    run(main)
