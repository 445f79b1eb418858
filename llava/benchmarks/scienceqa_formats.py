"""ScienceQA problems as training text, in any of the original's orders such as "QCM-LEA".

Before the dash is what is shown (Question, Context, Multiple options, Lecture, Explanation), behind it what
is answered (Answer, Lecture, Explanation, in LEPA under headings). Source: LLaVA v1.2.2
scripts/convert_sqa_to_llava.py and convert_sqa_to_llava_base_prompt.py. Kept: in AL and AE the original
puts solution and lecture the wrong way round; runs of two spaces become one, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError, SettingsError
from llava.files import atomic_write, read_json

LETTERS = "ABCDE"
BECAUSE = "BECAUSE:"
SHOWN = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
ANSWERED = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")


@dataclass(frozen=True, slots=True)
class Example:
    """One problem as text: what the person says, what the model should say, and the image if there is one."""

    id: str
    asked: str
    answered: str
    image: str | None


def examples(folder: Path, split: str, prompt_format: str) -> Iterator[Example]:
    """The problems of `split` in `folder` (problems.json, pid_splits.json), in the order of the list of ids.

    Raises:
        SettingsError: `prompt_format` is none of the original's.
        DataError: The split or a problem is missing, or a problem lacks a key.
    """
    shown, _, answered = prompt_format.partition("-")
    if shown not in SHOWN or answered not in ANSWERED:
        raise SettingsError(
            f"no prompt format {prompt_format!r}; wanted one of {', '.join(SHOWN)}, a dash, and one of "
            f"{', '.join(ANSWERED)}"
        )
    problems, splits = read_json(folder / "problems.json"), read_json(folder / "pid_splits.json")
    if split not in splits:
        raise DataError(f"{folder / 'pid_splits.json'}: no split {split!r}; there are: {', '.join(splits)}")
    for key in splits[split]:
        try:
            problem = problems[key]
            asked, told = _asked(shown, problem), _answered(answered, problem)
        except (KeyError, IndexError) as error:
            raise DataError(f"{folder / 'problems.json'}: problem {key}: no {error}") from error
        image = f"{key}/{problem['image']}" if problem["image"] else None
        yield Example(str(key), _tidy(asked), _tidy(told), image)


def _asked(shown: str, problem: Mapping[str, Any]) -> str:
    lines = {
        "Q": f"Question: {problem['question']}\n",
        "C": f"Context: {problem['hint'] or 'N/A'}\n",
        "M": f"Options: {_options(problem['choices'])}\n",
    }
    reasons = {"L": problem["lecture"], "E": problem["solution"]}
    text, waiting = "", []
    for letter in shown:
        if letter in reasons:
            waiting.append(reasons[letter])
            continue
        text += _because(waiting) + lines[letter]
        waiting = []
    return text + _because(waiting)


def _because(reasons: list[str]) -> str:
    return f"{BECAUSE} {' '.join(reasons)}\n" if reasons else ""


def _options(choices: list[str]) -> str:
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _answered(form: str, problem: Mapping[str, Any]) -> str:
    letter, lecture, solution = LETTERS[problem["answer"]], problem["lecture"], problem["solution"]
    if form == "LEPA":
        parts = [f"LECTURE: {lecture}"] if lecture.strip() else []
        parts += [f"SOLUTION: {solution}"] if solution.strip() else []
        return "\n".join([*parts, "###", f"ANSWER: {letter}."])
    verdict = f"The answer is {letter}."
    if form == "A":
        return f"Answer: {verdict}"
    if form.startswith("A"):
        # The original's mix-up: "L" alone behind the answer is the solution, "E" alone the lecture.
        reasons = {
            "AL": [solution], "AE": [lecture], "ALE": [lecture, solution], "AEL": [solution, lecture],
        }[form]  # fmt: skip
        return f"Answer: {verdict} {BECAUSE} {' '.join(reasons)}"
    before = " ".join({"L": lecture, "E": solution}[part] for part in form[:-1])
    return f"Answer: {before} {verdict}"


def _tidy(text: str) -> str:
    text = text.replace("  ", " ").strip()
    return text.replace(BECAUSE, "").strip() if text.endswith(BECAUSE) else text


def _unlabelled(text: str, label: str) -> str:
    return text.replace(label, "") if text.startswith(label) else text


def _instruction(example: Example) -> str:
    asked = _unlabelled(example.asked, "Question: ")
    return f"{asked}\n{DEFAULT_IMAGE_TOKEN}" if example.image else asked


def write_conversations(folder: Path, split: str, prompt_format: str) -> int:
    """Write `folder`/llava_<split>_<format>.json; how many conversations it holds."""
    records = []
    for example in examples(folder, split, prompt_format):
        turns = [
            {"from": "human", "value": _instruction(example)},
            {"from": "gpt", "value": _unlabelled(example.answered, "Answer: ")},
        ]
        image = {"image": example.image} if example.image else {}
        records.append({"id": example.id, **image, "conversations": turns})
    with atomic_write(folder / f"llava_{split}_{prompt_format}.json") as stream:
        json.dump(records, stream, indent=2)
    return len(records)


def write_instructions(folder: Path, split: str, prompt_format: str) -> None:
    """Write `folder`/scienceqa_<split>_<format>.jsonl: id, image where there is one, instruction, output."""
    with atomic_write(folder / f"scienceqa_{split}_{prompt_format}.jsonl") as stream:
        for example in examples(folder, split, prompt_format):
            image = {"image": example.image} if example.image else {}
            row = {
                "id": example.id,
                **image,
                "instruction": _instruction(example),
                "output": _unlabelled(example.answered, "Answer: "),
            }
            stream.write(json.dumps(row) + "\n")
