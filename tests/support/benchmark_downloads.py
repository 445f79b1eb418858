"""A tiny official download of every benchmark, with answers that are all right, for the contract tests."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from llava.benchmarks.base import Example
from llava.schema import Answer


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def seed(root: Path) -> Example:
    choices = {f"choice_{letter}": f"thing {letter}" for letter in "abcd"}
    rows = [
        ("11", 4, "image", "B"),
        ("12", 4, "image", "A"),
        ("13", 5, "image", "D"),
        ("v1", 10, "video", "C"),
    ]
    questions = [
        {"question_id": key, "question_type_id": kind, "data_type": data, "data_id": f"d{key}",
         "question": f"Which is {key}?", **choices, "answer": answer}
        for key, kind, data, answer in rows
    ]  # fmt: skip
    names = {"Instance Location": 4, "Instances Counting": 5, "Action Recognition": 10}
    write_json(root / "SEED-Bench.json", {"questions": questions, "question_type": names})
    return Example([Answer(int(key), "", answer) for key, _, data, answer in rows if data == "image"])


def _mmbench(root: Path, name: str) -> Example:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
               "l2-category", "comment", "split"]  # fmt: skip
    rows = [
        ["7", "Which?", "Look.", "cat", "dog", "", "", "B", "object", "aW1n", "s", "CP", "", "dev"],
        ["1000007", "Which?", "Look.", "dog", "cat", "", "", "A", "object", "aW1n", "s", "CP", "", "dev"],
        ["8", "Why?", "", "None", "NA", "rain", "", "C", "cause", "aW1n", "s", "LR", "", "dev"],
        ["1000008", "Why?", "", "NA", "rain", "None", "", "B", "cause", "aW1n", "s", "LR", "", "dev"],
        ["2000008", "Why?", "", "rain", "None", "NA", "", "A", "cause", "aW1n", "s", "LR", "", "dev"],
    ]
    root.mkdir(parents=True, exist_ok=True)
    with (root / name).open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([columns, *rows])
    return Example([Answer(int(row[0]), "", row[7]) for row in rows])


def mmbench(root: Path) -> Example:
    return _mmbench(root, "mmbench_dev_20230712.tsv")


def mmbench_cn(root: Path) -> Example:
    return _mmbench(root, "mmbench_dev_cn_20231003.tsv")


def mme(root: Path) -> Example:
    lines = "Is there a cat?  Please answer yes or no.\tYes\nIs there a dog? Please answer yes or no.\tNo\n"
    release = root / "MME_Benchmark_release_version"
    for folder, image in (
        ("existence", "0001.jpg"),
        ("existence", "3.jpg"),
        ("count", "2.png"),
        ("count", "5.png"),
    ):
        (release / folder).mkdir(parents=True, exist_ok=True)
        (release / folder / image).touch()
        (release / folder / image).with_suffix(".txt").write_text(lines)
    for part in ("images", "questions_answers_YN"):
        (release / "posters" / part).mkdir(parents=True)
    for name in ("tt1", "tt2"):
        (release / f"posters/images/{name}.jpg").touch()
        (release / f"posters/questions_answers_YN/{name}.txt").write_text(lines)
    posters = [f"posters/images/tt{n}.jpg" for n in (1, 2)]
    answers = [
        Answer(image, f"Is there a {animal}?\nAnswer the question using a single word or phrase.", said)
        for image in ("existence/0001.jpg", "existence/3.jpg", "count/2.png", "count/5.png", *posters)
        for animal, said in (("cat", "Yes"), ("dog", "No."))
    ]
    return Example(answers, best=600.0)


def gqa(root: Path) -> Example:
    def question(text: str, answer: str, structural: str) -> dict[str, object]:
        return {
            "question": text, "imageId": "n1", "answer": answer, "isBalanced": True, "entailed": [],
            "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
            "groups": {"global": "color", "local": "x"},
            "semantic": [{"operation": "select", "argument": "cup (1)", "dependencies": []}],
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        }  # fmt: skip

    rows = {
        "201": question("Is it red?", "yes", "verify"),
        "202": question("What color?", "dark blue", "query"),
    }
    write_json(root / "data/testdev_balanced_questions.json", rows)
    return Example([Answer("201", "", "Yes."), Answer("202", "", "Dark blue")])


def scienceqa(root: Path) -> Example:
    def problem(image: str | None, answer: int) -> dict[str, object]:
        return {
            "question": "Which  one?", "choices": ["x", "y", "z"], "answer": answer, "image": image,
            "hint": "Read." if image else "", "subject": "natural science", "grade": "grade7",
            "topic": "physics",
        }  # fmt: skip

    write_json(
        root / "problems.json", {"4": problem("image.png", 2), "9": problem(None, 0), "10": problem(None, 1)}
    )
    write_json(root / "pid_splits.json", {"train": ["10"], "test": ["9", "4"]})
    return Example([Answer("9", "", "A. x"), Answer("4", "", "C")])


def vqav2(root: Path) -> Example:
    people = [{"answer": "two", "answer_id": n} for n in range(9)] + [{"answer": "a few", "answer_id": 9}]
    annotations = [
        {"question_id": key, "image_id": 42, "question_type": "how many", "answer_type": "number",
         "multiple_choice_answer": "two", "answers": people}
        for key in (42000, 42001)
    ]  # fmt: skip
    questions = [{"question_id": key, "image_id": 42, "question": "How many?"} for key in (42000, 42001)]
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    return Example([Answer(42000, "", "Two."), Answer(42001, "", "2")], "val2014")


def vizwiz(root: Path) -> Example:
    people = [{"answer": "coke", "answer_confidence": "yes"}] * 10
    rows = [
        {
            "image": f"VizWiz_val_{n:08d}.jpg",
            "question": "What is this?",
            "answers": people,
            "answer_type": "other",
        }
        for n in range(2)
    ]
    write_json(root / "val.json", rows)
    return Example([Answer(0, "", "Coke"), Answer(1, "", "the coke.")], "val")


def textvqa(root: Path) -> Example:
    rows = [
        {"image_id": "a1", "question": text, "answers": ["Nokia"] * 10}
        for text in ("What brand?", "Who made it?")
    ]
    tokens = [{"image_id": "a1", "ocr_tokens": ["NOKIA", "3310"]}]
    write_json(root / "TextVQA_0.5.1_val.json", {"data": rows})
    write_json(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    tail = "\nReference OCR token: NOKIA, 3310\nAnswer the question using a single word or phrase."
    return Example([Answer("a1", f"{row['question']}{tail}", "nokia") for row in rows])


def pope(root: Path) -> Example:
    things = (("cat", "yes"), ("cow", "yes"), ("dog", "no"))
    for name in ("adversarial", "popular", "random"):
        rows: list[dict[str, object]] = [
            {
                "question_id": n,
                "image": f"{n}.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for n, (thing, label) in enumerate(things, start=1)
        ]
        write_jsonl(root / f"coco/coco_pope_{name}.json", rows)
    starts = (0, 10_000_000, 20_000_000)
    said = ((1, "Yes"), (2, "Yes, it is."), (3, "No"))
    return Example([Answer(start + n, "", text) for start in starts for n, text in said])


def mmvet(root: Path) -> Example:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": f"What is {n}?",
            "answer": "x<OR>y",
            "capability": needs,
        }
        for n, needs in enumerate((["ocr", "math"], ["rec"]))
    }
    write_json(root / "mm-vet.json", rows)
    return Example([Answer(n, "", "", extra={"grades": [1.0, 1.0]}) for n in range(2)])


def llava_bench(root: Path) -> Example:
    rows: list[dict[str, object]] = [
        {"question_id": n, "image": "001.jpg", "category": category, "text": f"What is {n}?"}
        for n, category in enumerate(("conv", "complex"))
    ]
    write_jsonl(root / "questions.jsonl", rows)
    reviews = [{"tuple": [8.0, 8.0], "category": f"llava_bench_{row['category']}"} for row in rows]
    return Example([Answer(n, "", "", extra={"review": review}) for n, review in enumerate(reviews)])


MAKERS: dict[str, Callable[[Path], Example]] = {
    maker.__name__: maker
    for maker in (
        seed, mmbench, mmbench_cn, mme, gqa, scienceqa, vqav2, vizwiz, textvqa, pope, mmvet, llava_bench,
    )
}  # fmt: skip
