"""The demo's data in the folders and formats that users have: LLaVA's JSON, engine records, SEED-Bench.

Each split draws its scenes from seeds of its own, so no image is in two of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.files import write_json, write_jsonl
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX, options_block, with_image_line, with_suffix

from .drawing import CELL, SIZE, draw
from .questions import TYPES, Asker, Question, is_askable
from .scene import POSITIONS, SHAPES, Scene, draw_scene

SPLITS = ("recipe", "pretrain", "base", "engine", "heldout", "rounds")
_SPLIT_SEEDS = 10**9
_SEED_SCENES = 10**6
KNOWN = (1, 2, 3, 8)
"""The types the base model was taught in every mode."""
WEAK = (7, 9)
"""The types it was taught to answer in a word but not by letter, and which the engine has records for."""
CAPTIONED = (1, 2, 3)
"""The types whose facts stand in captions."""
MIX_FILE = "llava_v1_5_mix665k.json"
ENGINE_FILE = "data_engine/dataengine_llava.json"
CAPTIONS_FILE = "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
SEED_BENCH = "eval/seed_bench"
ROUND_IMAGES = "demo/rounds"
"""The images that a round's requests are about; what is in them stands beside the folder."""
_MODES = ("letter", "letter", "letter", "short", "sentence")


def scenes(split: str, seed: int) -> Iterator[Scene]:
    """The split's scenes, each of which has a question of every type."""
    first = SPLITS.index(split) * _SPLIT_SEEDS + seed * _SEED_SCENES
    return (scene for scene in map(draw_scene, range(first, first + _SEED_SCENES)) if is_askable(scene))


def conversation(question: Question, mode: str) -> list[dict[str, str]]:
    """A question as one exchange of LLaVA's mix, asking for a letter, a short answer or a sentence."""
    if mode == "letter":
        asked, answer = letter_prompt(question), question.letter
    elif mode == "short":
        asked, answer = with_suffix(question.text, SHORT_SUFFIX), question.short
    else:
        asked, answer = question.text, question.sentence
    return [{"from": "human", "value": with_image_line(asked)}, {"from": "gpt", "value": answer}]


def letter_prompt(question: Question) -> str:
    return with_suffix(question.text, options_block(question.options), LETTER_SUFFIX)


def caption(asker: Asker, scene: Scene) -> str:
    """What is there to see, in one sentence of each type that a caption would mention."""
    return " ".join(asker.ask(scene, type_id).sentence for type_id in CAPTIONED)


def write_captions(root: Path, seed: int, count: int) -> None:
    """Stage 1: a caption an image, in the place of the 558k set."""
    asker = Asker(seed)
    rows = []
    folder = root / CAPTIONS_FILE
    for index, scene in zip(range(count), scenes("pretrain", seed), strict=False):
        name = f"{index:06d}.png"
        _save(scene, folder.parent / "images" / name)
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(asker, scene)}]
        rows.append({"id": f"caption_{index}", "image": name, "conversations": turns})
    write_json(folder, rows, indent=None)


def write_base(root: Path, seed: int, count: int, types: Sequence[int]) -> None:
    """Stage 2: questions of the types in turn, one an image, in the place of the 665k mix.

    The weak types are only ever asked for a short answer.
    """
    asker = Asker(seed)
    rng = random.Random(f"modes {seed}")
    rows = []
    for index, scene in zip(range(count), scenes("base", seed), strict=False):
        name = f"demo/base/{index:06d}.png"
        _save(scene, root / name)
        question = asker.ask(scene, types[index % len(types)])
        mode = "short" if question.type_id in WEAK else rng.choice(_MODES)
        rows.append({"id": f"base_{index}", "image": name, "conversations": conversation(question, mode)})
    write_json(root / MIX_FILE, rows, indent=None)


def write_engine(root: Path, seed: int, count: int, types: Sequence[int]) -> None:
    """Engine records of the types in turn, one an image."""
    asker = Asker(seed)
    rows = []
    for index, scene in zip(range(count), scenes("engine", seed), strict=False):
        name = f"demo/engine/{index:06d}.png"
        _save(scene, root / name)
        question = asker.ask(scene, types[index % len(types)])
        rows.append(
            {
                "instruction": question.text,
                "answer": question.sentence,
                "short_answer": question.short,
                "options": list(question.options),
                "choice_answer": question.letter,
                "image": name,
                "qtype": question.type_id,
            }
        )
    write_json(root / ENGINE_FILE, rows, indent=None)


def write_round_images(root: Path, seed: int, count: int) -> None:
    """Images for a data-engine round, their captions and boxes in COCO's formats, and `rounds.scenes.jsonl`.

    The scenes are what the offline provider (`provider.py`) sees in an image.
    """
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    annotations = []
    for index, scene in zip(range(count), scenes("rounds", seed), strict=False):
        name = f"{index:06d}.png"
        _save(scene, root / ROUND_IMAGES / name)
        images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
        captions += [
            {"id": len(captions) + number, "image_id": index, "caption": text}
            for number, text in enumerate(_describe(scene))
        ]
        for thing in scene.things:
            box = [thing.column * CELL, thing.row * CELL, CELL, CELL]
            category = SHAPES.index(thing.shape)
            boxes.append({"id": len(boxes), "image_id": index, "category_id": category, "bbox": box})
        annotations.append({"image": f"{ROUND_IMAGES}/{name}", **_annotation(scene)})
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES)]
    beside = root / ROUND_IMAGES
    write_json(beside.with_suffix(".captions.json"), {"images": images, "annotations": captions}, indent=None)
    instances = {"images": images, "annotations": boxes, "categories": categories}
    write_json(beside.with_suffix(".instances.json"), instances, indent=None)
    write_jsonl(beside.with_suffix(".scenes.jsonl"), annotations)


def _describe(scene: Scene) -> list[str]:
    """All that is in the scene, in sentences."""
    things = [
        f"A {thing.colour} {thing.shape} at the {POSITIONS[thing.cell]} is holding a {thing.item}."
        for thing in scene.things
    ]
    return [f"This is a {scene.place}.", *things, f"The sign says {scene.word}."]


def write_seed_bench(root: Path, seed: int, images: int, types: Sequence[int]) -> None:
    """Held-out questions in SEED-Bench's schema, one a type and image; as there, images have no suffix."""
    asker = Asker(seed)
    folder = root / SEED_BENCH
    rows: list[dict[str, Any]] = []
    annotations = []
    for index, scene in zip(range(images), scenes("heldout", seed), strict=False):
        data_id = f"demo_{index:06d}"
        _save(scene, folder / "SEED-Bench-image" / data_id)
        annotations.append({"data_id": data_id, **_annotation(scene)})
        for type_id in types:
            question = asker.ask(scene, type_id)
            rows.append(
                {
                    "answer": question.letter,
                    **{
                        f"choice_{letter}": text
                        for letter, text in zip("abcd", question.options, strict=True)
                    },
                    "data_id": data_id,
                    "data_type": "image",
                    "question": question.text,
                    "question_id": str(len(rows) + 1),
                    "question_type_id": type_id,
                }
            )
    names = {name: type_id for name, type_id in TYPES.items() if type_id in types}
    write_json(folder / "SEED-Bench.json", {"questions": rows, "question_type": names}, indent=None)
    write_jsonl(folder / "scenes.jsonl", annotations)


def _annotation(scene: Scene) -> dict[str, Any]:
    """What is in the scene; cells count row by row from 0."""
    things = [{"cell": t.cell, "shape": t.shape, "colour": t.colour, "item": t.item} for t in scene.things]
    return {"place": scene.place, "word": scene.word, "sign_cell": scene.sign_cell, "things": things}


def _save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(scene).save(path, format="PNG", compress_level=1)
