"""Command: answer the multiple-choice questions of an MMBench TSV, images included in it.

    python -m llava.eval.model_vqa_mmbench --model-path liuhaotian/llava-v1.5-7b --temperature 0 \
        --conv-mode vicuna_v1 --single-pred-prompt --question-file mmbench_dev_20230712.tsv \
        --answers-file answers.jsonl

Source of prompts and rows: LLaVA v1.2.2 llava/eval/model_vqa_mmbench.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from llava.benchmarks.tasks.mmbench import LETTERS, MmbenchItem, read_mmbench_items
from llava.benchmarks.tasks.mmbench_cn import LETTER_CN
from llava.command import run
from llava.compat.questions import all_options as all_options
from llava.compat.questions import get_chunk as get_chunk
from llava.compat.questions import get_options as get_options
from llava.compat.questions import is_none as is_none
from llava.compat.questions import split_list as split_list
from llava.errors import DataError
from llava.infer.engine.requests import ImageText
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


def asks_of(item: MmbenchItem, where: str, *, rounds: bool, suffix: str | None) -> Iterator[Ask]:
    """Yield the question of `item`; with `rounds`, once for each option, rotated.

    The letters shown stay A, B, ...; `option_char` gives the original letter of each. The line that asks for
    a letter, `suffix`, is not logged.

    Raises:
        DataError: The item of the file `where` has no question, no option, or no image.
    """
    needed = {"question": item.question.strip(), "option A": item.options, "image": item.image}
    for what, found in needed.items():
        if not found:
            raise DataError(f"{where}: question {item.index}: has no {what}", code="bad-question")
    letters = list(LETTERS[: len(item.options)])
    for number in range(len(letters) if rounds else 1):
        asked = item.rotate(number)
        yield Ask(
            head={"question_id": item.index, "round_id": number, "prompt": asked.text},
            text=asked.text if suffix is None else f"{asked.text}\n{suffix}",
            image=ImageText(item.image),
            tail={"options": list(asked.options), "option_char": letters[number:] + letters[:number]},
        )


def read_mmbench_job(given: object = None) -> tuple[AnswerJob, list[Ask]]:
    """Return the job and the questions that flags name; see `parse_or_complete` for `given`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    add_run_flags(parser, question_file="tables/question.jsonl", conv_mode="llava_v1")
    add_sampling_flags(parser)
    parser.add_argument("--all-rounds", action="store_true", help="ask once for each option, options rotated")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter")
    parser.add_argument("--lang", choices=("en", "cn"), default="en", help="language of that line")
    flags = parse_or_complete(parser, given)
    job = answer_job(flags, generation_settings(flags, max_new_tokens=1024))
    sentence = LETTER_CN if flags.lang == "cn" else LETTER_SUFFIX
    suffix = sentence if flags.single_pred_prompt else None
    return job, read_mmbench_asks(job.question_file, rounds=flags.all_rounds, suffix=suffix)


def read_mmbench_asks(question_file: Path, *, rounds: bool, suffix: str | None) -> list[Ask]:
    """Return what to ask for an MMBench TSV."""
    where = str(question_file)
    items = read_mmbench_items(question_file)
    return [ask for item in items for ask in asks_of(item, where, rounds=rounds, suffix=suffix)]


def eval_model(args: object = None) -> None:
    """Answer the questions that `args` names, by default the command line."""
    answer(*read_mmbench_job(args))


def main() -> None:
    eval_model()


if __name__ == "__main__":
    run(main)
