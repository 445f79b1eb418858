"""Checks of `clients.py` for the original's programs that score answers, compare them or ask a judge.

Programs that ask OpenAI's models run with a stand-in for its package, which answers without a network.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from client_runs import QUESTION
from client_workshop import COLOURS, REPO, ClientError, Workshop

from llava.files import read_json, write_json, write_jsonl

# What a judge says of two answers: points of ten, and why.
POINTS = (8.0, 4.0)


def scoring_checks(checkout: Path, shop: Workshop) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name and the check of each program."""
    for name in ("eval_pope", "eval_textvqa"):
        yield f"llava/eval/{name}.py", functools.partial(check_scores, checkout, shop, name)
    checks = {
        "eval_science_qa": check_science_qa,
        "eval_science_qa_gpt4": check_gpt4_as_judge,
        "eval_science_qa_gpt4_requery": check_gpt4_as_judge,
        "eval_gpt_review": check_review,
        "eval_gpt_review_visual": check_review,
        "eval_gpt_review_bench": check_review,
        "summarize_gpt_review": check_summary,
        "qa_baseline_gpt35": check_baseline,
        "generate_webpage_data_from_table": check_page,
        "model_qa": check_text_only,
    }
    for name, check in checks.items():
        yield f"llava/eval/{name}.py", functools.partial(check, checkout, shop, name)


def check_scores(checkout: Path, shop: Workshop, name: str) -> str:
    """Compare what a scoring program prints with what our command prints."""
    labels = shop.root / "pope_labels"
    labels.mkdir(exist_ok=True)
    rows = [{"question_id": number, "label": "yes" if number % 2 else "no"} for number in range(len(COLOURS))]
    write_jsonl(labels / "coco_pope_default.json", rows)
    answers = [
        {"question_id": number, "text": "Yes" if number else "no", "prompt": f"colour {number}?\nShort."}
        for number in range(len(COLOURS))
    ]
    write_jsonl(shop.root / "answers.jsonl", answers)
    truth = [
        {"image_id": number, "question": f"Colour {number}?", "answers": ["yes"] * 10}
        for number in range(len(COLOURS))
    ]
    write_json(shop.root / "truth.json", {"data": truth})
    flags = ["--result-file", "answers.jsonl"]
    if name == "eval_pope":
        flags += ["--annotation-dir", str(labels), "--question-file", "questions.jsonl"]
    else:
        flags += ["--annotation-file", "truth.json"]
    printed = [shop.call(folder / f"llava/eval/{name}.py", *flags) for folder in (checkout, REPO)]
    if printed[0].split() != printed[1].split():
        raise ClientError(f"printed {printed[0]!r}, our command {printed[1]!r}")
    return "the same lines as our command's"


def write_science(shop: Workshop) -> list[str | Path]:
    """Write ScienceQA's files and answers; return the flags that all three programs take."""
    folder = shop.root / "scienceqa"
    folder.mkdir(exist_ok=True)
    problems = {
        str(number): {
            "choices": ["red", "blue", "green"],
            "answer": number % 2,
            "lecture": "",
            "solution": "",
        }
        for number in range(len(COLOURS))
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": list(problems)})
    texts = ("The answer is A.", "B. blue", "A", "I do not know")
    answers = [
        {"question_id": key, "text": text, "prompt": "<image>\n?" if text == "A" else "?"}
        for key, text in zip(problems, texts, strict=True)
    ]
    write_jsonl(folder / "answers.jsonl", answers)
    said = dict.fromkeys(problems, "The answer is A.")
    write_json(folder / "gpt4.json", {"outputs": said})
    write_jsonl(folder / "again.jsonl", ({"question_id": key, "text": text} for key, text in said.items()))
    return ["--base-dir", folder]


def check_science_qa(checkout: Path, shop: Workshop, name: str) -> str:
    """Compare the printed line and both files with those of our command."""
    flags = [*write_science(shop), "--result-file", "scienceqa/answers.jsonl"]
    seen = []
    for folder in (checkout, REPO):
        files = ["--output-file", "analysis.json", "--output-result", "result.json"]
        printed = shop.call(folder / f"llava/eval/{name}.py", *flags, *files)
        seen.append([printed.split(), *((shop.root / file).read_bytes() for file in files[1::2])])
    if seen[0] != seen[1]:
        raise ClientError(f"printed {seen[0][0]}, our command {seen[1][0]}, or wrote other files")
    return "the same line and the same bytes in two files as our command's"


def check_gpt4_as_judge(checkout: Path, shop: Workshop, name: str) -> str:
    """Mix our answers with GPT-4's, which are right for every second problem."""
    flags = [*write_science(shop), "--our-result", "scienceqa/answers.jsonl"]
    flags += ["--gpt4-result", "scienceqa/gpt4.json"]
    if name.endswith("requery"):
        flags += ["--requery-result", "scienceqa/again.jsonl", "--output-result", "requery.json"]
    printed = shop.call(checkout / f"llava/eval/{name}.py", *flags)
    lines = [line for line in printed.splitlines() if line.startswith("Total: 4, ")]
    if not any("Accuracy: 50.00%" in line for line in lines):
        raise ClientError(f"printed {printed!r}")
    return lines[0]


def write_answers(shop: Workshop) -> Path:
    """Return the file of our command's answers, which it writes once."""
    path = shop.root / "ours/model_vqa.jsonl"
    if not path.is_file():
        flags = ["--model-path", shop.model, "--question-file", "questions.jsonl", "--temperature", 0]
        flags += ["--image-folder", shop.images, "--conv-mode", "vicuna_v1", "--dtype", "float16"]
        shop.call("-m", "llava.eval.model_vqa", *flags, "--answers-file", path)
    return path


def check_review(checkout: Path, shop: Workshop, name: str) -> str:
    """Let a judge's stand-in compare our command's answers with themselves."""
    answers = write_answers(shop)
    category = "llava_bench_default" if name.endswith("bench") else "default"
    write_json(shop.root / "rule.json", {category: {"prompt": "Judge.", "role": "Assistant"}})
    about = [
        {"image": f"{colour}.png", "caption": colour, "captions": [colour], "instances": []}
        for colour in COLOURS
    ]
    write_jsonl(shop.root / "context.jsonl", about)
    flags: list[str | Path] = ["--question", "questions.jsonl", "--rule", "rule.json"]
    flags += ["--answer-list", answers, answers, "--output", f"review_{name}.jsonl"]
    if name != "eval_gpt_review":
        flags += ["--context", "context.jsonl"]
    shop.harness("judged", checkout / f"llava/eval/{name}.py", *flags)
    rows = read_rows(shop.root / f"review_{name}.jsonl")
    if [row["tuple"] for row in rows] != [list(POINTS)] * len(COLOURS):
        raise ClientError(f"wrote {rows}")
    return f"{len(rows)} reviews of our command's answers"


def read_rows(path: Path) -> Sequence[dict[str, object]]:
    """Return the rows of a jsonl file that a program wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_summary(checkout: Path, shop: Workshop, name: str) -> str:
    """Compare the summary of a judge's reviews with our benchmark's scores."""
    reviews = [
        {"question_id": number, "category": f"llava_bench_{kind}", "tuple": [8.0, points]}
        for number, (kind, points) in enumerate(
            [("conv", 4.0), ("conv", 7.0), ("detail", 6.0), ("complex", 9.0)]
        )
    ]
    write_jsonl(shop.root / "review_llava.jsonl", reviews)
    printed = shop.call(checkout / f"llava/eval/{name}.py", "--files", "review_llava.jsonl")
    theirs = {line.split()[0]: line.split()[1] for line in printed.splitlines() if len(line.split()) == 4}
    scored = [{**row, "text": "?", "category": str(row["category"])[12:]} for row in reviews]
    folder = shop.root / "llava_bench"
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "questions.jsonl", ({**row, "image": "red.png"} for row in scored))
    write_jsonl(folder / "answers.jsonl", scored)
    command = ["-m", "llava.benchmarks", "score", "llava_bench", "--answers", folder / "answers.jsonl"]
    shop.call(*command, "--root", folder, "--truth", "review_llava.jsonl", "--save-path", "scores")
    scores = read_json(shop.root / "scores/metrics.json")["scores"]
    rows = {row["name"]: row["value"] for row in scores if row["group"] in ("total", "type")}
    ours = {name: f"{rows[name.removeprefix('llava_bench_')]:.1f}" for name in theirs}
    if theirs != ours:
        raise ClientError(f"printed {theirs}, our command {ours}")
    return f"all {theirs['all']}, as our benchmark's score"


def check_baseline(checkout: Path, shop: Workshop, name: str) -> str:
    """Ask GPT-3.5's stand-in, and judge nothing."""
    flags = ["--question", "questions.jsonl", "--output", "gpt35.jsonl"]
    shop.harness("judged", checkout / f"llava/eval/{name}.py", *flags)
    rows = read_rows(shop.root / "gpt35.jsonl")
    if [row["question_id"] for row in rows] != list(range(len(COLOURS))):
        raise ClientError(f"wrote {rows}")
    return f"{len(rows)} answers"


def check_page(checkout: Path, shop: Workshop, name: str) -> str:
    """Make the data of Vicuna's page from our command's answers."""
    answers = read_rows(write_answers(shop))
    table = shop.root / "table"
    files = {
        "question": [
            {"question_id": n, "category": "default", "text": QUESTION} for n in range(len(COLOURS))
        ],
        "answer/answer_vicuna-13b": answers,
        "results/llama-13b-hf-alpaca": answers,
        "review/review_vicuna-13b_llama-13b-hf-alpaca": [
            {"question_id": n, "content": "8 4\nAssistant 1 is better.", "tuple": POINTS}
            for n in range(len(COLOURS))
        ],
    }
    for file, rows in files.items():
        write_jsonl(table / f"{file}.jsonl", rows)
    (shop.root / "webpage").mkdir(exist_ok=True)
    shop.call(checkout / f"llava/eval/{name}.py")
    made = read_json(shop.root / "webpage/data.json")["questions"]
    if {row["answers"]["ours"] for row in made} != {row["text"] for row in answers}:
        raise ClientError(f"wrote {made}")
    return f"{len(made)} questions with our command's answers"


def check_text_only(checkout: Path, shop: Workshop, name: str) -> str:
    """Ask the demo's language model without images; the program samples."""
    folder = shop.copy_language_model()
    flags = ["--model-name", folder, "--question-file", "questions.jsonl", "--answers-file", "text.jsonl"]
    shop.harness("program", checkout / f"llava/eval/{name}.py", *flags)
    return f"{len(read_rows(shop.root / 'text.jsonl'))} answers of a language model"
