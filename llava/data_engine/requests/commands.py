"""The sub-commands `llava engine requests` and `llava engine retrieve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from llava.benchmarks.base import EVAL_ROOT
from llava.data_engine.requests.facts import SourceFiles
from llava.data_engine.requests.make import make_requests, summarize_requests
from llava.data_engine.requests.retrieve import retrieve_records, summarize_retrieval
from llava.data_engine.requests.writing import RequestSettings
from llava.errors import SettingsError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add two sub-commands to `llava engine`.

    `requests` writes a prompt for each chosen image of a round; `retrieve` takes existing records instead.
    """
    parser = commands.add_parser("requests", help="a round's plan -> requests.jsonl, a prompt for each image")
    add = parser.add_argument
    add("round", type=Path, help="the round's folder, such as rounds/1")
    add("--images", type=Path, required=True, help="the folder of the images to ask about")
    add("--image-root", type=Path, help="the folder that image paths start from (default: that of --images)")
    add(
        "--eval-root",
        type=Path,
        default=EVAL_ROOT,
        help="the benchmarks, whose images are never used (default %(default)s)",
    )
    _add_sources(parser.add_argument_group("what is known about the images").add_argument)
    _add_prompt(parser.add_argument_group("prompt").add_argument)
    _add_choice(parser.add_argument_group("choice of images").add_argument)
    parser.set_defaults(command=_requests)

    retrieve = commands.add_parser("retrieve", help="a round's plan -> existing records, instead of asking")
    retrieve.add_argument("round", type=Path, help="the round's folder, such as rounds/1-retrieved")
    retrieve.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        help="files of engine records or of LLaVA samples; their questions with options are taken",
    )
    retrieve.set_defaults(command=_retrieve)


def _add_sources(add: Callable[..., object]) -> None:
    add("--vg", type=Path, help="Visual Genome's region_descriptions.json")
    add("--vg-images", type=Path, help="Visual Genome's image_data.json: sizes and COCO ids")
    add("--coco-captions", type=Path, help="captions in COCO's format")
    add("--coco-instances", type=Path, help="boxes in COCO's format")
    add("--ocr", type=Path, help='lines of {"image": ..., "texts": [...]}')
    add("--scenes", type=Path, help='lines of {"image": ...} with anything else, which is shown as it is')


def _add_prompt(add: Callable[..., object]) -> None:
    add("--template", default="questions", help="a file in rounds/templates (default %(default)s)")
    add("--questions", type=int, default=3, help="to ask for in a request (default %(default)s)")
    add("--attach-image", action="store_true", help="attach the image; else only texts describe it")
    add("--model-answers", action="store_true", help="show the model's wrong answers to the bad cases")
    add("--most-boxes", type=int, default=50, help="regions, and objects, in a prompt (default %(default)s)")


def _add_choice(add: Callable[..., object]) -> None:
    add("--near", type=float, default=0.0, help="share near a bad case's image (default: 0, any image)")
    add("--features", type=Path, help="with --near: `llava features` of --images")
    add("--case-features", type=Path, help="with --near: `llava features` of the benchmark's images")
    add("--most-near", type=int, default=1000, help="how many images count as near (default %(default)s)")
    add("--fewer", action="store_true", help="where images lack, make fewer requests than planned")


def _requests(arguments: argparse.Namespace) -> None:
    for package in ("imagehash", "jinja2"):
        if find_spec(package) is None:
            raise SettingsError(
                f"requests need {package}: pip install 'llava[engine]'", code="missing-package"
            )
    settings = RequestSettings(
        images=arguments.images,
        image_root=arguments.image_root or arguments.images,
        eval_root=arguments.eval_root,
        sources=SourceFiles(
            vg=arguments.vg,
            vg_images=arguments.vg_images,
            coco_captions=arguments.coco_captions,
            coco_instances=arguments.coco_instances,
            ocr=arguments.ocr,
            scenes=arguments.scenes,
        ),
        template=arguments.template,
        questions=arguments.questions,
        attach=arguments.attach_image,
        model_answers=arguments.model_answers,
        near=arguments.near,
        features=arguments.features,
        case_features=arguments.case_features,
        most_near=arguments.most_near,
        most_boxes=arguments.most_boxes,
        fewer=arguments.fewer,
    )
    sys.stdout.write(summarize_requests(make_requests(arguments.round, settings)) + "\n")


def _retrieve(arguments: argparse.Namespace) -> None:
    report = retrieve_records(arguments.round, arguments.records)
    sys.stdout.write(summarize_retrieval(report) + "\n")
