"""COMMAND: answer the multiple-choice questions of an MMBench TSV, images included in it.

    python -m llava.eval.model_vqa_mmbench --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --single-pred-prompt --question-file mmbench_dev_20230712.tsv \
        --answers-file answers.jsonl

Source of prompts and rows: LLaVA v1.2.2 llava/eval/model_vqa_mmbench.py.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from llava.benchmarks._base import LETTER, as_number, options_text
from llava.command import run
from llava.errors import DataError
from llava.infer.flags import add_model_flags, add_run_flags, add_sampling_flags, answering_run, generation
from llava.infer.requests import ImageText
from llava.infer.run import Ask, answer

LETTERS = "ABCD"
SUFFIXES = {"en": LETTER, "cn": "请直接回答选项字母。"}
COLUMNS = ("index", "question", "image", "A", "B")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of the TSV, by column.

    Raises:
        DataError: The file is missing, lacks a column, or a row has more or fewer fields than the header.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    csv.field_size_limit(sys.maxsize)  # images are fields here
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", strict=True)
        try:
            header = rows.fieldnames or []
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise DataError(
                    f"{path}:1: no column {', '.join(missing)}; the columns are {', '.join(header)[:200]}"
                )
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{rows.line_num}: not {len(header)} fields as the header has")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{rows.line_num}: not a line of a TSV ({error})") from error


def asks_of(row: Mapping[str, str], where: str, *, rounds: bool, suffix: str | None) -> Iterator[Ask]:
    """One question; with `rounds`, as many as it has options, each with the options moved on by one.

    Displayed letters stay A, B, ...; `option_char` says which option stood behind each at first.
    """
    options = []
    for letter in LETTERS:
        if _is_none(row.get(letter, "")):
            break
        options.append(row[letter])
    if not options:
        raise DataError(f"{where}: option A is empty")
    hint = row.get("hint", "")
    question = row["question"] if _is_none(hint) else f"{hint}\n{row['question']}"
    letters = list(LETTERS[: len(options)])
    for number in range(len(options) if rounds else 1):
        moved, moved_letters = options[number:] + options[:number], letters[number:] + letters[:number]
        prompt = options_text(question, moved)
        yield Ask(
            head={"question_id": as_number(row["index"]), "round_id": number, "prompt": prompt},
            text=prompt if suffix is None else f"{prompt}\n{suffix}",
            image=ImageText(row["image"]),
            tail={"options": moved, "option_char": moved_letters},
        )


def _is_none(cell: str) -> bool:
    """Whether a cell holds nothing, by the original's own rule; its pandas dropped NA and null, too."""
    return cell.lower() in {"", "nan", "none"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.jsonl", conv_mode="llava_v1")
    add_sampling_flags(parser)
    parser.add_argument("--all-rounds", action="store_true", help="ask once an option, options moved on")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--lang", default="en", help="of that sentence: cn, else English")
    flags = parser.parse_args()
    asked = answering_run(flags, generation(flags, max_new_tokens=1024))
    suffix = SUFFIXES.get(flags.lang, LETTER) if flags.single_pred_prompt else None
    asks = [
        ask
        for number, row in enumerate(read_rows(asked.question_file), start=1)
        for ask in asks_of(
            row, f"{asked.question_file}: row {number}", rounds=flags.all_rounds, suffix=suffix
        )
    ]
    answer(asked, asks)


if __name__ == "__main__":
    run(main)
