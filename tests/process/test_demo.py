"""The embedded model: its world is fair and repeatable, its weights are small, load, and truly see."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from transformers import CLIPVisionModel

from llava.benchmarks.tasks.seed import read_seed_items
from llava.data_engine.records import parse_record, read_rows
from llava.files import read_json
from llava.infer.engine.engine import Engine
from llava.infer.engine.load import load
from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model import LlavaLlamaForCausalLM
from llava.prompts.wording import SHORT_SUFFIX, with_suffix
from llava.samples import read_samples

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / "playground" / "demo"
SHIPPED_LIMIT = 8 * 10**6
STRONG = {"Scene Understanding", "Instance Identity", "Instance Attributes"}
WEAK = {"Instance Interaction", "Text Understanding"}
BENCH = "eval/seed_bench"
SIZES = ["--captions", "8", "--base", "40", "--engine", "60", "--heldout", "40"]


def generate(root: Path, *flags: str) -> Path:
    subprocess.run([sys.executable, DEMO / "generate.py", "--root", root, *SIZES, *flags], check=True)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("world"))


def files(root: Path) -> dict[str, str]:
    """Digest of each file under the root."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def questions(world: Path) -> Iterator[dict[str, Any]]:
    yield from read_json(world / BENCH / "SEED-Bench.json")["questions"]


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert files(generate(tmp_path)) == files(world)


def test_no_image_is_in_two_splits_or_seeds(world: Path, tmp_path: Path) -> None:
    digests = [
        digest
        for root in (world, generate(tmp_path, "--seed", "1"))
        for name, digest in files(root).items()
        if not name.endswith((".json", ".jsonl"))
    ]
    assert len(digests) == 2 * (8 + 40 + 60 + 40)
    assert len(set(digests)) == len(digests)


def test_the_files_are_what_the_tools_read(world: Path) -> None:
    samples = list(read_samples(world / "llava_v1_5_mix665k.json"))
    assert len(samples) == 40
    assert all(sample.image and (world / sample.image).is_file() for sample in samples)
    rows = list(read_rows(world / "data_engine/dataengine_llava.json"))
    records = [parse_record(row, index) for index, row in rows]
    assert Counter(record.skill for record in records) == {
        "Instance Interaction": 30,
        "Text Understanding": 30,
    }
    assert all(record.choice and len(record.choice.options) == 4 and not record.faults for record in records)
    items = read_seed_items(world / BENCH / "SEED-Bench.json")
    assert set(Counter(item.skill for item in items).values()) == {40}
    with Image.open(world / BENCH / str(items[0].question.image)) as image:
        assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "PNG")


def test_letters_and_answers_have_no_favourite(world: Path) -> None:
    letters: dict[int, Counter[str]] = {}
    counts = Counter[str]()
    for row in questions(world):
        options = [row[f"choice_{letter}"] for letter in "abcd"]
        assert len(set(options)) == 4
        letters.setdefault(row["question_type_id"], Counter())[row["answer"]] += 1
        if row["question_type_id"] == 5:
            counts[options["ABCD".index(row["answer"])]] += 1
    assert all(set(found.values()) == {10} for found in letters.values())
    assert max(counts.values()) - min(counts.values()) <= 2


def test_the_questions_words_do_not_give_the_answer_away(tmp_path: Path) -> None:
    """A reader without eyes: for each question's words, and then for each option, how often it was right."""
    root = generate(tmp_path, "--heldout", "600", "--base", "0", "--engine", "0", "--captions", "0")
    rows = list(questions(root))
    half = len(rows) // 2
    right: Counter[tuple[str, str]] = Counter()
    shown: Counter[tuple[str, str]] = Counter()
    for row in rows[:half]:
        for letter in "ABCD":
            key = (row["question"], row[f"choice_{letter.lower()}"])
            shown[key] += 1
            right[key] += letter == row["answer"]
    hits = 0
    for row in rows[half:]:
        keys = {letter: (row["question"], row[f"choice_{letter.lower()}"]) for letter in "ABCD"}
        guess = max(keys, key=lambda letter: (right[keys[letter]] + 1) / (shown[keys[letter]] + 4))
        hits += guess == row["answer"]
    assert hits / (len(rows) - half) < 0.30


def test_the_shipped_files_are_small_and_in_fp16() -> None:
    shipped = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "playground/demo"],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    )
    assert sum((REPO / name).stat().st_size for name in shipped.stdout.split("\0") if name) <= SHIPPED_LIMIT
    for folder in ("model", "tower"):
        with safe_open(DEMO / folder / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_the_shipped_weights_are_all_there_and_nothing_else() -> None:
    _, tower = CLIPVisionModel.from_pretrained(DEMO / "tower", output_loading_info=True)
    assert not any(tower.values()), tower
    _, model = LlavaLlamaForCausalLM.from_pretrained(DEMO / "model", output_loading_info=True)
    assert not any(model.values()), model


@pytest.fixture(scope="module")
def shipped() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)  # config.json names the tower by a path from the repository
        model = load(ModelChoice("playground/demo/model", None, "llava-demo", device="cpu", dtype="float32"))
        yield Engine(model, Generation(max_new_tokens=4), batch_size=20)


def scores(engine: Engine, world: Path, skills: set[str], *, short: bool = False) -> dict[str, float]:
    """Share of right answers to the held-out questions, as letters or in a word."""
    asked = [
        (item, row)
        for item, row in zip(
            read_seed_items(world / BENCH / "SEED-Bench.json"), questions(world), strict=True
        )
        if item.skill in skills
    ]
    requests, truths = [], []
    for item, row in asked:
        text = with_suffix(row["question"], SHORT_SUFFIX) if short else item.question.text
        image = ImageFile(world / BENCH / str(item.question.image))
        requests.append(Request(prompt_of("vicuna_v1", text, "<image>\n"), (image,)))
        truths.append(row[f"choice_{row['answer'].lower()}"] if short else row["answer"])
    right = Counter(
        asked[index][0].skill for index, reply in engine.answer(requests) if reply.text == truths[index]
    )
    return {skill: right[skill] * len(skills) / len(asked) for skill in skills}


def test_the_shipped_model_sees(shipped: Engine, world: Path) -> None:
    assert min(scores(shipped, world, STRONG).values()) > 0.9


def test_the_shipped_model_says_its_weak_types_answers_but_knows_no_letter_for_them(
    shipped: Engine, world: Path
) -> None:
    assert min(scores(shipped, world, WEAK, short=True).values()) > 0.7
    assert max(scores(shipped, world, WEAK).values()) < 0.5  # of 40 questions; chance is a quarter
