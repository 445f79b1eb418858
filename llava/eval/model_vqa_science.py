"""COMMAND: answer ScienceQA questions, with and without image, from a JSON list of conversations.

    python -m llava.eval.model_vqa_science --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --single-pred-prompt --question-file llava_test_CQM-A.json \
        --image-folder images/test --answers-file answers.jsonl

Source of prompts and rows: LLaVA v1.2.2 llava/eval/model_vqa_science.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import run
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.files import read_json
from llava.infer.engine.requests import ImageFile
from llava.infer.jobs.flags import (
    add_model_flags,
    add_run_flags,
    add_sampling_flags,
    answering_run,
    generation,
)
from llava.infer.jobs.run import Ask, Run, answer
from llava.prompts.wording import LETTER_SUFFIX


def ask_of(row: Any, where: str, image_folder: Path, *, suffix: str | None) -> Ask:
    """The question of one conversation: what the human says first.

    The logged prompt tells by its image token whether there is an image; that is how scores are split.

    Raises:
        DataError: The row has no id or no conversation.
    """
    try:
        identifier, said = row["id"], row["conversations"][0]["value"]
        image = row.get("image")
        text = said.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: wanted an object with id and conversations, the first with its value ({error!r})"
        ) from error
    if suffix is not None:
        text = f"{text}\n{suffix}"
    if image is None:
        return Ask({"question_id": identifier, "prompt": text}, text)
    if not isinstance(image, str) or not image:
        raise DataError(f"{where}: image is {image!r}, wanted a path under --image-folder")
    logged = f"{DEFAULT_IMAGE_TOKEN}\n{text}"
    return Ask({"question_id": identifier, "prompt": logged}, text, ImageFile(image_folder / image))


def read_job(argv: Sequence[str] | None = None) -> tuple[Run, list[Ask]]:
    """The run and the questions that `argv` names (None: the command line)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.json", conv_mode="llava_v0")
    add_sampling_flags(parser, beams=False)
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted; never had an effect")
    flags = parser.parse_args(argv)
    asked = answering_run(flags, generation(flags, max_new_tokens=1024, beams=False))
    rows = read_json(asked.question_file)
    if not isinstance(rows, list):
        raise DataError(f"{asked.question_file}: found {type(rows).__name__}, wanted a list of conversations")
    suffix = LETTER_SUFFIX if flags.single_pred_prompt else None
    folder = Path(flags.image_folder).expanduser()
    return asked, [
        ask_of(row, f"{asked.question_file}: element {place}", folder, suffix=suffix)
        for place, row in enumerate(rows)
    ]


def main() -> None:
    answer(*read_job())


if __name__ == "__main__":
    run(main)
