"""Export a model, ask it in vLLM and here, and count the equal prompts and answers.

    python scripts/bench/vllm_answers.py --model-path playground/demo/model --images photos \
        --vllm-python vllm-env/bin/python

vLLM has an environment of its own, as its requirements differ. It gets prompts as text and images as files,
so its tokenizer and its image processing are compared, too. Answers are greedy, in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTIONS = (
    "What is this?",
    "Describe the picture  in a few words.",
    "Is there a person?\nAnswer yes or no.",
)


def answers_here(model: Path, asks: list[dict[str, str]], tokens: int) -> list[tuple[list[int], str]]:
    """Return (prompt ids, answer) for each question; the ids of an image's positions are left out."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.infer.engine.engine import Engine
    from llava.infer.engine.load import load
    from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Request
    from llava.prompts.encode import tokenizer_image_token

    loaded = load(ModelChoice(str(model), device="cpu", dtype="float32"))
    requests = [Request(ask["prompt"], (ImageFile(Path(ask["image"])),)) for ask in asks]
    replies = dict(Engine(loaded, Generation(max_new_tokens=tokens)).answer(requests))
    ids = [tokenizer_image_token(ask["prompt"], loaded.tokenizer) for ask in asks]
    return [
        ([index for index in prompt if index != IMAGE_TOKEN_INDEX], replies[number].text)
        for number, prompt in enumerate(ids)
    ]


def answer_in_vllm(job: Path) -> None:
    """Answer the questions of `job` with vLLM and write them beside it. Runs in vLLM's environment."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    settings = json.loads(job.read_text(encoding="utf-8"))
    model = LLM(
        settings["model"], dtype="float32", enforce_eager=True, max_model_len=settings["length"], seed=0
    )
    prompts = [
        {"prompt": ask["prompt"], "multi_modal_data": {"image": Image.open(ask["image"]).convert("RGB")}}
        for ask in settings["asks"]
    ]
    sampling = SamplingParams(temperature=0, max_tokens=settings["tokens"])
    found = [
        [
            [index for index in output.prompt_token_ids if index != settings["image_token"]],
            output.outputs[0].text.strip(),
        ]
        for output in model.generate(prompts, sampling)
    ]
    job.with_suffix(".answers.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, help="a full model")
    parser.add_argument("--images", type=Path, help="a folder of images")
    parser.add_argument("--vllm-python", help="the Python of an environment with vLLM")
    parser.add_argument("--most", type=int, default=64, help="the most questions")
    parser.add_argument("--tokens", type=int, default=16, help="the most tokens of an answer")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        answer_in_vllm(args.job)
        return
    if not (args.model_path and args.images and args.vllm_python):
        parser.error("give --model-path, --images and --vllm-python")

    from llava.exchange.hf_folder import export_hf
    from llava.infer.jobs.prompting import prompt_of

    pictures = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in {".jpg", ".png"})
    asks = [
        {
            "prompt": prompt_of("v1", QUESTIONS[number % len(QUESTIONS)], "<image>\n"),
            "image": str(path.resolve()),
        }
        for number, path in enumerate(pictures[: args.most])
    ]
    if not asks:
        parser.error(f"{args.images}: holds no .jpg and no .png")
    with tempfile.TemporaryDirectory() as name:
        folder, job = Path(name) / "model", Path(name) / "job.json"
        export_hf(str(args.model_path), None, folder, dtype="float32", conv_mode="v1")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = {
            "model": str(folder),
            "asks": asks,
            "tokens": args.tokens,
            "image_token": config["image_token_index"],
            "length": config["text_config"]["max_position_embeddings"],
        }
        job.write_text(json.dumps(settings), encoding="utf-8")
        subprocess.run([args.vllm_python, __file__, "--job", str(job)], check=True, cwd=name)
        theirs = json.loads(job.with_suffix(".answers.json").read_text(encoding="utf-8"))
    ours = answers_here(args.model_path, asks, args.tokens)
    pairs = list(zip(ours, theirs, strict=True))
    same_ids = sum(own[0] == other[0] for own, other in pairs)
    same_text = sum(own[1] == other[1] for own, other in pairs)
    sys.stdout.write(
        f"{len(pairs)} questions: {same_ids} prompts with equal ids, {same_text} equal answers\n"
    )


if __name__ == "__main__":
    main()
