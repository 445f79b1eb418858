"""Measure answering speed: one question at a time, as the original asks, against the engine.

Both sides run in one call, on the same machine, random weights, pictures and questions; their answers must
agree. Questions come in the shapes of the benchmarks: so many about one image, so long. They are the real
ones where `LLAVA_TEST_DATA` has the files, else random words in the same numbers. Answer lengths are forced:
random weights never end an answer by themselves.

    OMP_NUM_THREADS=1 python scripts/bench/eval_speed.py
    python scripts/bench/eval_speed.py --device cuda --shape 7b --scale 10
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, GenerationConfig

from llava.command import run
from llava.image_reading import read_image
from llava.images import process_images
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import Loaded
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.builder import write_vision_model
from llava.prompts.encode import tokenizer_image_token
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX
from llava.tokenizer import load_tokenizer

WORD = f"\n{SHORT_SUFFIX}"
WORDS = "what is the color of that small dog left to a man who holds an umbrella in front of two cars"
LETTER = f"\n{LETTER_SUFFIX}"
COLUMNS = (
    *("shape", "questions an image", "ids a prompt", "tokens an answer", "texts", "loop /s", "engine /s"),
    *("ratio", "ratio of processor time", "answers agree", "different answers", "asked again"),
)
# Answers of half precision may differ where even one prompt at a time is a matter of rounding.
AGREEMENT = {"float32": 1.0, "float16": 0.999, "bfloat16": 0.999}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a language model and a vision tower: width, layers, heads, feed-forward width."""

    language: tuple[int, int, int, int]
    vision: tuple[int, int, int, int]


SIZES = {
    "tiny": Sizes((64, 2, 4, 172), (32, 3, 2, 64)),
    "small": Sizes((512, 12, 8, 1408), (256, 12, 4, 1024)),
    "7b": Sizes((4096, 32, 32, 11008), (1024, 24, 16, 4096)),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a benchmark asks: questions per image in turn, words per question, appended prompt.

    `read` gives the real questions, image by image, from a folder of real data. `tokens` is how long answers
    are, `images` how many images are asked about.
    """

    counts: tuple[int, ...]
    words: tuple[int, int]
    tail: str
    tokens: int
    images: int
    read: Callable[[Path], Iterable[list[str]]] | None = None


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
        vocab_size=32000,
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
    model.generation_config.eos_token_id = config.vocab_size  # never chosen
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


@torch.inference_mode()
def ask_one_at_a_time(loaded: Loaded, requests: Sequence[Request], tokens: int, keep: int) -> list[str]:
    """Answer as the original's loop does: encode the question's image, process the whole prompt, generate."""
    model, said = loaded.model, []
    settings = GenerationConfig(do_sample=False, max_new_tokens=tokens, use_cache=True, pad_token_id=0)
    for request in requests:
        ids = torch.tensor([tokenizer_image_token(request.prompt, loaded.tokenizer)], device=loaded.device)
        (source,) = request.images
        assert isinstance(source, ImageFile)
        picture = read_image(source.path)
        pixels = process_images([picture], loaded.image_processor, model.config)[0]
        pixels = pixels[None].to(loaded.device, model.dtype)
        output = model.generate(
            ids,
            images=pixels,
            image_sizes=[picture.size],
            generation_config=settings,
            logits_to_keep=keep,
        )
        said.append(loaded.tokenizer.decode(output[0].tolist(), skip_special_tokens=True).strip())
    return said


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


def compare(loaded: Loaded, name: str, flags: argparse.Namespace, folder: Path) -> bool:
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
    engine = Engine(loaded, Generation(max_new_tokens=kind.tokens), exact=flags.exact)

    def ask_engine(some: Sequence[Request]) -> list[str]:
        found = dict(engine.answer(some))
        return [found[index].text for index in range(len(some))]

    def ask_alone(some: Sequence[Request]) -> list[str]:
        return ask_one_at_a_time(loaded, some, kind.tokens, 0 if flags.all_logits else 1)

    ask_engine(requests[:2])
    ask_alone(requests[:1])
    ours, fast, fast_cpu = timed(lambda: ask_engine(requests), loaded.device)
    again = engine.asked_again
    alone, slow, slow_cpu = timed(lambda: ask_alone(requests), loaded.device)
    agreeing = sum(a == b for a, b in zip(ours, alone, strict=True))
    ids = [len(tokenizer_image_token(request.prompt, loaded.tokenizer)) for request in requests]
    cells = [name, f"{len(requests) / len(pictures):.1f}", f"{sum(ids) / len(ids):.0f}", kind.tokens, origin]
    cells += [f"{len(requests) / slow:.2f}", f"{len(requests) / fast:.2f}", f"{slow / fast:.2f}"]
    cells.append(f"{slow_cpu / fast_cpu:.2f}" if loaded.device.type == "cpu" else "-")
    print_row(*cells, f"{agreeing} of {len(requests)}", len(set(alone)), again)
    return agreeing >= AGREEMENT[flags.dtype] * len(requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(AGREEMENT), help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--shape", choices=list(SIZES), default="small")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer images")
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--all-logits",
        action="store_true",
        help="the loop computes logits of the whole prompt, as transformers 4.37 did; default: the last only",
    )
    flags = parser.parse_args()
    flags.dtype = flags.dtype or ("bfloat16" if flags.device.startswith("cuda") else "float32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = build(SIZES[flags.shape], flags.device, getattr(torch, flags.dtype), folder)
        print(f"{flags.shape} model, {flags.device}, {flags.dtype}, {torch.get_num_threads()} threads\n")
        print_row(*COLUMNS)
        print_row(*["---"] * len(COLUMNS))
        agree = [compare(loaded, kind, flags, folder) for kind in flags.kinds]
    if not all(agree):
        sys.exit("the answers differ")


if __name__ == "__main__":
    run(main)
