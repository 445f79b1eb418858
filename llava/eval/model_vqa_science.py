"""Command: answer ScienceQA questions, with and without image, from a JSON list of conversations.

    python -m llava.eval.model_vqa_science --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --single-pred-prompt --question-file llava_test_CQM-A.json \
        --image-folder images/test --answers-file answers.jsonl

Source of prompts and rows: LLaVA v1.2.2 llava/eval/model_vqa_science.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llava.benchmarks.records import read_json_records, require_id
from llava.command import run
from llava.compat.questions import get_chunk as get_chunk
from llava.compat.questions import split_list as split_list
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.image_reading import image_path
from llava.infer.engine.requests import ImageFile
from llava.infer.jobs.flags import (
    add_model_flags,
    add_run_flags,
    add_sampling_flags,
    answer_job,
    generation_settings,
    parse_or_complete,
)
from llava.infer.jobs.run import AnswerJob, Ask, answer
from llava.prompts.wording import LETTER_SUFFIX


def ask_of(row: Any, where: str, image_folder: Path, *, suffix: str | None) -> Ask:
    """Return the question of one conversation: its first human turn.

    The logged prompt starts with the image token if there is an image; scores are split by that.

    Raises:
        DataError: The row has no id or no conversation, or its image is no path under the folder.
    """
    try:
        identifier, value = row["id"], row["conversations"][0]["value"]
        image = row.get("image")
        text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: wanted an object with id and conversations, the first with its value ({error!r})",
            code="bad-question",
        ) from error
    require_id(identifier, where)
    if suffix is not None:
        text = f"{text}\n{suffix}"
    if image is None:
        return Ask({"question_id": identifier, "prompt": text}, text)
    path = image_path(image_folder, image, where)
    logged = f"{DEFAULT_IMAGE_TOKEN}\n{text}"
    return Ask({"question_id": identifier, "prompt": logged}, text, ImageFile(path))


def read_science_job(given: object = None) -> tuple[AnswerJob, list[Ask]]:
    """Return the job and the questions that flags name; see `parse_or_complete` for `given`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.json", conv_mode="llava_v0")
    add_sampling_flags(parser, beams=False)
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted; never had an effect")
    flags = parse_or_complete(parser, given)
    job = answer_job(flags, generation_settings(flags, max_new_tokens=1024, beams=False))
    suffix = LETTER_SUFFIX if flags.single_pred_prompt else None
    return job, read_conversation_asks(
        job.question_file, Path(flags.image_folder).expanduser(), suffix=suffix
    )


def read_conversation_asks(question_file: Path, image_folder: Path, *, suffix: str | None) -> list[Ask]:
    """Return the questions of a file of conversations: the first turn of each, with its image.

    Args:
        question_file: A JSON list of records with `id`, `conversations` and perhaps `image`.
        image_folder: The folder that image paths start from.
        suffix: A line to add to each question, such as "Answer with the option's letter ..."; None for none.

    Raises:
        DataError: The file is missing or no JSON list, or a record has no id, no first turn, or an image path
            outside the folder.
    """
    rows = read_json_records(question_file)
    if not isinstance(rows, list):
        raise DataError(
            f"{question_file}: found {type(rows).__name__}, wanted a list of conversations", code="not-a-list"
        )
    return [
        ask_of(row, f"{question_file}: element {index}", image_folder, suffix=suffix)
        for index, row in enumerate(rows)
    ]


def eval_model(args: object = None) -> None:
    """Answer the questions that `args` names, by default the command line."""
    answer(*read_science_job(args))


def main() -> None:
    eval_model()


if __name__ == "__main__":
    run(main)
