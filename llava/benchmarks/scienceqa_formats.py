"""Format ScienceQA problems as training text, in any of the original's prompt formats such as "QCM-LEA".

The letters before the dash are the parts of the input (Question, Context, Multiple options, Lecture,
Explanation), those after it the parts of the output (Answer, Lecture, Explanation; LEPA has headings).
Quirks of the original are kept: AL and AE swap solution and lecture, double spaces are halved once, and a
backslash followed by "n" in a lecture or solution becomes a line break.

Source: LLaVA v1.2.2 scripts/convert_sqa_to_llava.py and convert_sqa_to_llava_base_prompt.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from llava.benchmarks.records import read_json_records, require_id
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError, SettingsError
from llava.files import atomic_write

LETTERS = "ABCDE"
BECAUSE = "BECAUSE:"
INPUT_FORMATS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUT_FORMATS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")


class ProblemRecord(TypedDict):
    """A record of problems.json, as far as it is used."""

    question: str
    hint: str
    choices: list[str]
    answer: int
    image: str | None
    lecture: str
    solution: str


@dataclass(frozen=True, slots=True)
class ScienceExample:
    """One problem as text: the input, the output, and the image if there is one."""

    id: str
    input: str
    output: str
    image: str | None


def read_examples(folder: Path, split: str, prompt_format: str) -> Iterator[ScienceExample]:
    """Read the problems of `split` in `folder` (problems.json, pid_splits.json) in the order of the split.

    Raises:
        SettingsError: `prompt_format` is not one of the original's.
        DataError: The split or a problem is missing, or a problem lacks a key.
    """
    input_format, _, output_format = prompt_format.partition("-")
    if input_format not in INPUT_FORMATS or output_format not in OUTPUT_FORMATS:
        raise SettingsError(
            f"no prompt format {prompt_format!r}; wanted one of {', '.join(INPUT_FORMATS)}, a dash, and one "
            f"of {', '.join(OUTPUT_FORMATS)}",
            code="unknown-prompt-format",
        )
    problems = read_json_records(folder / "problems.json")
    for key in read_split(folder / "pid_splits.json", split):
        where = f"{folder / 'problems.json'}: problem {key}"
        try:
            problem: ProblemRecord = problems[key]
            text, target = _format_input(input_format, problem), _format_output(output_format, problem)
            image = None if problem["image"] is None else f"{key}/{problem['image']}"
        except KeyError as error:
            raise DataError(f"{where}: no {error}", code="missing-key") from error
        except (IndexError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: not a problem of ScienceQA ({error})", code="record-shape") from error
        yield ScienceExample(key, _clean(text), _clean(target), image)


def read_split(path: Path, split: str) -> list[str]:
    """Return the ids that pid_splits.json lists for `split`, each once.

    Raises:
        DataError: There is no such split, or it is no list of ids.
    """
    splits = read_json_records(path)
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list):
        there = ", ".join(splits) if isinstance(splits, dict) else type(splits).__name__
        raise DataError(f"{path}: no list of ids {split!r}; there are: {there}", code="unknown-split")
    return list(dict.fromkeys(str(require_id(key, f"{path}: {split}")) for key in splits[split]))


def _format_input(form: str, problem: ProblemRecord) -> str:
    lines = {
        "Q": f"Question: {problem['question']}\n",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}\n",
        "M": f"Options: {_options(problem['choices'])}\n",
    }
    reasons = _reasons(problem)
    text = ""
    pending: list[str] = []
    for letter in form:
        if letter in reasons:
            pending.append(reasons[letter])
            continue
        text += _because(pending) + lines[letter]
        pending = []
    return text + _because(pending)


def _reasons(problem: ProblemRecord) -> dict[str, str]:
    r"""Return lecture and solution by their letter; a literal "\n" becomes a line break."""
    texts = {"L": problem["lecture"], "E": problem["solution"]}
    return {letter: text.replace("\\n", "\n") for letter, text in texts.items()}


def _because(reasons: list[str]) -> str:
    return f"{BECAUSE} {' '.join(reasons)}\n" if reasons else ""


def _options(choices: list[str]) -> str:
    return " ".join(f"({LETTERS[number]}) {choice}" for number, choice in enumerate(choices))


def _format_output(form: str, problem: ProblemRecord) -> str:
    letter = LETTERS[problem["answer"]]
    lecture, solution = _reasons(problem).values()
    if form == "LEPA":
        parts = [f"LECTURE: {lecture}"] if lecture.strip() else []
        parts += [f"SOLUTION: {solution}"] if solution.strip() else []
        return "\n".join([*parts, "###", f"ANSWER: {letter}."])
    answer = f"The answer is {letter}."
    if form == "A":
        return f"Answer: {answer}"
    if form.startswith("A"):
        # As in the original, "AL" has the solution and "AE" the lecture.
        reasons = {
            "AL": [solution], "AE": [lecture], "ALE": [lecture, solution], "AEL": [solution, lecture],
        }[form]  # fmt: skip
        return f"Answer: {answer} {BECAUSE} {' '.join(reasons)}"
    before = " ".join(_reasons(problem)[part] for part in form[:-1])
    return f"Answer: {before} {answer}"


def _clean(text: str) -> str:
    text = text.replace("  ", " ").strip()
    return text.replace(BECAUSE, "").strip() if text.endswith(BECAUSE) else text


def _remove_label(text: str, label: str) -> str:
    # Like the original, this also removes later occurrences of the label.
    return text.replace(label, "") if text.startswith(label) else text


def _instruction(example: ScienceExample) -> str:
    text = _remove_label(example.input, "Question: ")
    return f"{text}\n{DEFAULT_IMAGE_TOKEN}" if example.image else text


def write_conversations(folder: Path, split: str, prompt_format: str) -> int:
    """Write `folder`/llava_<split>_<format>.json and return the number of conversations."""
    records = []
    for example in read_examples(folder, split, prompt_format):
        turns = [
            {"from": "human", "value": _instruction(example)},
            {"from": "gpt", "value": _remove_label(example.output, "Answer: ")},
        ]
        image = {"image": example.image} if example.image else {}
        records.append({"id": example.id, **image, "conversations": turns})
    with atomic_write(folder / f"llava_{split}_{prompt_format}.json") as stream:
        json.dump(records, stream, indent=2)
    return len(records)


def write_instructions(folder: Path, split: str, prompt_format: str) -> None:
    """Write `folder`/scienceqa_<split>_<format>.jsonl: id, image (if there is one), instruction, output."""
    with atomic_write(folder / f"scienceqa_{split}_{prompt_format}.jsonl") as stream:
        for example in read_examples(folder, split, prompt_format):
            image = {"image": example.image} if example.image else {}
            row = {
                "id": example.id,
                **image,
                "instruction": _instruction(example),
                "output": _remove_label(example.output, "Answer: "),
            }
            stream.write(json.dumps(row) + "\n")
