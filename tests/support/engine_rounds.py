"""Rounds of the data engine without a server: scored runs over SEED-like questions, and a round's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from llava.data_engine.loop.plan import make_plan
from llava.data_engine.loop.pool import make_pool
from llava.data_engine.loop.round import file_sha256, read_settings
from llava.data_engine.requests.versions import copy_templates, current_version
from llava.files import write_json, write_jsonl
from llava.schema import Score, Scores, Verdict

SUFFIX = "Answer with the option's letter from the given choices directly."
OPTIONS = "\nA. one\nB. two\nC. three\nD. four\n" + SUFFIX
WORDS = [
    "cat",
    "tree",
    "house",
    "lamp",
    "river",
    "window",
    "bottle",
    "street",
    "cloud",
    "piano",
    "tiger",
    "candle",
]
# Type: number of questions, share that is right.
TYPES = {"Scene Understanding": (120, 0.8), "Text Understanding": (40, 0.25), "Spatial Relation": (80, 0.5)}


def run_of(right: dict[str, float] | None = None, *, model: str = "m0") -> Scores:
    """A run over SEED-like questions, two about each image; the easiest ones are right."""
    random, verdicts, number = Random(7), [], 100
    for kind, (count, share) in TYPES.items():
        for index in range(count):
            wanted = (right or {}).get(kind, share)
            is_right = Random(f"{kind} {index}").random() < wanted
            words = " ".join(random.sample(WORDS, 4))
            verdicts.append(
                Verdict(
                    question_id=number,
                    type=kind,
                    score=float(is_right),
                    answer="A" if is_right else "B",
                    truth="A",
                    image=f"SEED-Bench-image/{number // 2}.jpg",
                    question=f"Where is the {words}?{OPTIONS}",
                )
            )
            number += 1
    total = Score("image", 100 * sum(v.score for v in verdicts) / len(verdicts), len(verdicts), over={})
    return Scores("seed", "image", (total,), tuple(verdicts), model_id=model)


def record_of(request: str, number: int, **changes: Any) -> dict[str, Any]:
    """An accepted record."""
    return {
        "instruction": f"Where is thing {number}?",
        "answer": "It is on the left.",
        "short_answer": "left",
        "options": ["left", "right", "above", "below"],
        "choice_answer": "A",
        "image": f"vg/VG_100K/{number}.jpg",
        "qtype": number % 3 + 1,
        "request": request,
        **changes,
    }


def fill_round(
    folder: Path,
    metrics: Path,
    *,
    requests: int = 6,
    cost: float | None = 0.5,
    rejected: dict[str, int] | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Write a round as its steps would, up to the accepted records: one record of each request."""
    make_pool(folder, metrics, changes=changes)
    make_plan(folder)
    copy_templates(folder.parent)
    template = current_version(folder.parent, "questions")
    settings = read_settings(folder)
    cases = [
        case["question_id"]
        for row in json.loads((folder / "pool.json").read_text())["types"].values()
        for case in row["cases"]
    ][:3]
    names = [f"{folder.name}-{number:04}" for number in range(requests)]
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "round": settings.round,
            "type": "Scene Understanding",
            "image": f"vg/VG_100K/{number}.jpg",
            "cases": cases,
            "template": {"name": template.name, "version": template.version},
            "seed": number,
            "plan": file_sha256(folder / "plan.json"),
        }
        for number, name in enumerate(names)
    ]
    write_jsonl(folder / "requests.jsonl", rows)
    write_jsonl(
        folder / "responses.jsonl",
        [{"id": name, "text": "", "model": "teacher", "cost": cost, "attempts": 1} for name in names],
    )
    start = 1000 * settings.round
    write_jsonl(
        folder / "accepted.jsonl", [record_of(name, start + index) for index, name in enumerate(names)]
    )
    write_jsonl(folder / "rejected.jsonl", [])
    inputs = {
        f"{folder.name}/{name}": file_sha256(folder / name) for name in ("requests.jsonl", "responses.jsonl")
    }
    write_json(
        folder / "clean.json",
        {"schema": 1, "inputs": inputs, "accepted": requests, "rejected": rejected or {}},
    )
