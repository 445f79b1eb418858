"""Run other people's programs on this package, with the demo's tiny model, and print a table of what ran.

    python scripts/bench/clients.py --llava DIR --lmms-eval DIR --vlmevalkit DIR
    python scripts/bench/clients.py --llava DIR --transformers4 PYTHON

Each DIR is a checkout of that project. Its files run as they are, with this package as `llava`; answers must
equal those of this package's own commands. What a checkout imports besides must be installed beside this
package. `--transformers4` is the Python of an environment with transformers 4.37.2: there the original loads
what this package writes, and its logits must be this package's; and its Trainer makes as many steps with the
same learning rates. Without a GPU everything runs on the CPU.
Exit code 1 if something fails.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from client_runs import QUESTION
from client_scores import scoring_checks
from client_workshop import DEMO, LIMIT_S, REPO, ClientError, Workshop, environment
from safetensors.torch import load_file

from llava.command import run
from llava.files import read_json, write_json

# Of the largest logit: merging an adapter rounds to float16, and attention differs in the last bits.
TOLERANCE = 2e-3
TRAINING = """--version v1 --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2
    --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad
    --max_steps 2 --per_device_train_batch_size 2
    --eval_strategy no --save_strategy no --learning_rate 1e-4 --logging_steps 1 --model_max_length 512
    --report_to none --use_cpu True"""
# Samples, samples in a batch, batches in a step, epochs, ranks.
SCHEDULES = (
    *((48, 5, 3, 2, 1), (48, 5, 3, 2, 2), (33, 4, 2, 1.5, 1)),
    *((13, 4, 3, 2, 2), (26, 5, 2, 2.3, 1), (100, 8, 4, 3, 2)),
)
KINDS = {"lora": "--lora_enable True", "projector": "--tune_mm_mlp_adapter True", "full": ""}


# ---- the original's programs


def llava_checks(checkout: Path, shop: Workshop) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name and the check of each of the original's programs."""
    for name in ("model_vqa", "model_vqa_loader", "model_vqa_mmbench", "model_vqa_science"):
        yield f"llava/eval/{name}.py", functools.partial(check_answers, checkout, shop, name)
    yield "llava/eval/run_llava.py", functools.partial(check_run_llava, checkout, shop)
    yield from scoring_checks(checkout, shop)
    yield "llava/serve/{controller,model_worker}.py", functools.partial(check_serving, checkout, shop)
    yield "predict.py", functools.partial(check_predict, checkout, shop)
    for kind in KINDS:
        yield f"llava/train/train.py, {kind}", functools.partial(check_training, checkout, shop, kind)
    yield "scripts/merge_lora_weights.py", functools.partial(check_merging, checkout, shop)


def check_answers(checkout: Path, shop: Workshop, name: str) -> str:
    """Compare the answers of one of the original's answering programs with our command's."""
    question_files = {"model_vqa_mmbench": "mmbench.tsv", "model_vqa_science": "science.json"}
    flags = ["--model-path", shop.model, "--question-file", question_files.get(name, "questions.jsonl")]
    flags += ["--temperature", 0, "--conv-mode", "vicuna_v1"]
    if name != "model_vqa_mmbench":
        flags += ["--image-folder", shop.images]
    theirs, ours = shop.root / f"theirs/{name}.jsonl", shop.root / f"ours/{name}.jsonl"
    program = checkout / f"llava/eval/{name}.py"
    shop.harness("program", program, *flags, "--answers-file", theirs)
    shop.call("-m", f"llava.eval.{name}", *flags, "--answers-file", ours, "--dtype", "float16")
    texts = [[json.loads(line)["text"] for line in path.open()] for path in (theirs, ours)]
    if texts[0] != texts[1]:
        raise ClientError(f"answers {texts[0]}, our command {texts[1]}")
    return f"{len(texts[0])} answers equal our command's"


def check_run_llava(checkout: Path, shop: Workshop) -> str:
    """Compare the printed answer of run_llava.py with our command's."""
    flags = ["--model-path", shop.model, "--image-file", shop.image, "--query", QUESTION, "--temperature", 0]
    theirs = shop.harness("program", checkout / "llava/eval/run_llava.py", *flags).strip()
    ours = shop.call("-m", "llava.eval.run_llava", *flags, "--dtype", "float16").strip()
    if theirs.splitlines()[-1:] != ours.splitlines()[-1:]:
        raise ClientError(f"answered {theirs!r}, our command {ours!r}")
    return f"answered {ours.splitlines()[-1]!r} as our command"


def check_serving(checkout: Path, shop: Workshop) -> str:
    """Start the controller and a worker, and ask the worker over HTTP as the web page does."""
    import requests

    host, ports = "http://127.0.0.1", (free_port(), free_port())
    controller, worker = (f"{host}:{port}" for port in ports)
    address = ["--controller-address", controller, "--worker-address", worker, "--port", ports[1]]
    serve = checkout / "llava/serve"
    prompt = f"A chat. USER: <image>\n{QUESTION} ASSISTANT:"
    picture = base64.b64encode(Path(shop.image).read_bytes()).decode()
    asked = {"prompt": prompt, "images": [picture], "temperature": 0, "max_new_tokens": 8, "stop": "</s>"}
    model = ["--model-path", shop.model, "--device", "cpu"]
    with (
        started(shop, serve / "controller.py", "--host", "127.0.0.1", "--port", ports[0]),
        started(shop, serve / "model_worker.py", "--host", "127.0.0.1", *address, *model),
    ):
        deadline = time.monotonic() + LIMIT_S / 2
        while True:
            try:
                if shop.model.name in requests.post(f"{controller}/list_models", timeout=5).json()["models"]:
                    break
            except requests.RequestException:
                pass
            if time.monotonic() > deadline:
                raise ClientError("the worker never registered")
            time.sleep(1)
        asked["model"] = shop.model.name
        reply = requests.post(f"{controller}/worker_generate_stream", json=asked, timeout=LIMIT_S)
    last = json.loads(reply.content.split(b"\0")[-2])
    if last["error_code"]:
        raise ClientError(f"the worker answered {last}")
    return f"streamed {last['text'].removeprefix(prompt).strip()!r}"


@contextmanager
def started(shop: Workshop, *command: object) -> Iterator[None]:
    """Run a program in the background while the block runs."""
    harness = [sys.executable, REPO / "scripts/bench/client_runs.py", "program", *command]
    with (shop.root / "serving.log").open("a") as log:
        process = subprocess.Popen(
            list(map(str, harness)), cwd=shop.root, env=environment(REPO), stdout=log, stderr=log
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def check_predict(checkout: Path, shop: Workshop) -> str:
    """Ask predict.py, with the demo's weights under the names that it would download."""
    folder = shop.root / "liuhaotian/llava-v1.5-13b"
    shutil.copytree(shop.model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [f"pytorch_model-{number:05}-of-00003.bin" for number in (1, 2, 3)]
    names = {name: shards[place % 3] for place, name in enumerate(weights)}
    for shard in shards:
        torch.save({name: weights[name] for name in names if names[name] == shard}, folder / shard)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": names})
    tower = shop.root / "openai/clip-vit-large-patch14-336"
    shutil.copytree(DEMO / "tower", tower, dirs_exist_ok=True)
    torch.save(load_file(tower / "model.safetensors"), tower / "pytorch_model.bin")
    (tower / "model.safetensors").unlink()
    return f"answered {shop.harness('predict', checkout / 'predict.py', shop.image).splitlines()[-1]!r}"


def check_training(program_of: Path, shop: Workshop, kind: str) -> str:
    """Train two steps with a checkout's train.py, and load the result."""
    output = trained(program_of, shop, kind)
    logits = compute_logits(shop, output, kind)
    if not torch.isfinite(logits).all():
        raise ClientError("the result's logits are not finite")
    return f"trained; wrote {', '.join(sorted(path.name for path in output.glob('*.[bs][ia]*')))}"


def trained(program_of: Path, shop: Workshop, kind: str) -> Path:
    """Return the folder of a run of two steps by a checkout's train.py, made once."""
    output = shop.root / ("ours" if program_of == REPO else "theirs") / f"llava-v1.5-tiny-{kind}"
    flags = ["--model_name_or_path", shop.model, "--vision_tower", DEMO / "tower", "--output_dir", output]
    flags += ["--data_path", "train.json", "--image_folder", shop.images, *TRAINING.split()]
    if not output.is_dir():
        shop.harness("program", program_of / "llava/train/train.py", *flags, *KINDS[kind].split())
    return output


def compute_logits(
    shop: Workshop, folder: Path, kind: str, *, python: str = sys.executable, package: Path = REPO
) -> torch.Tensor:
    """Return a model's logits of the probe, (1, L, V), by `package` under `python`."""
    out = shop.root / "logits.pt"
    base = "" if kind == "full" else shop.model
    shop.harness("logits", folder, base, out, python=python, package=package)
    logits: torch.Tensor = torch.load(out, weights_only=True)
    return logits


def check_merging(checkout: Path, shop: Workshop) -> str:
    """Merge an adapter with the original's script; the logits must stay."""
    adapter = trained(checkout, shop, "lora")
    merged = shop.root / "theirs/llava-v1.5-tiny-merged"
    paths = ["--model-path", adapter, "--model-base", shop.model, "--save-model-path", merged]
    shop.harness("program", checkout / "scripts/merge_lora_weights.py", *paths)
    before, after = compute_logits(shop, adapter, "lora"), compute_logits(shop, merged, "full")
    return f"logits agree to {require_close(before, after):.1e}"


def require_close(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest logit.

    Raises:
        ClientError: It is too large.
    """
    difference = ((first - second).abs().max() / first.abs().max()).item()
    if not difference <= TOLERANCE:  # true for NaN as well
        raise ClientError(f"logits differ by {difference:.1e} of the largest")
    return difference


# ---- what this package writes, in the original


def file_checks(checkout: Path, python: str, shop: Workshop) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the check of each kind of file that this package writes."""

    def check(kind: str, folder: Path | None) -> str:
        folder = folder or trained(REPO, shop, kind)
        ours = compute_logits(shop, folder, kind)
        theirs = compute_logits(shop, folder, kind, python=python, package=checkout)
        return f"logits agree to {require_close(ours, theirs):.1e}"

    yield "the demo's model and tower", functools.partial(check, "full", shop.model)
    for kind in KINDS:
        yield f"what training writes, {kind}", functools.partial(check, kind, None)


def step_checks(checkout: Path, python: str, shop: Workshop) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the check of each of `SCHEDULES`."""
    for numbers in SCHEDULES:
        name = "steps of {} samples, batch {}, accumulation {}, {} epochs, {} ranks".format(*numbers)
        yield name, functools.partial(check_steps, checkout, python, shop, *numbers)


def check_steps(checkout: Path, python: str, shop: Workshop, *numbers: float) -> str:
    """Compare the steps and the learning rates of a run with those of transformers 4.37.2's Trainer."""
    *schedule, ranks = numbers
    sides = {
        "transformers.Trainer": (python, checkout),
        "llava.train.llava_trainer.LLaVATrainer": (sys.executable, REPO),
    }
    found = []
    for trainer, (interpreter, package) in sides.items():
        launcher: list[object] = ["-m", "torch.distributed.run", "--nproc_per_node", ranks]
        launcher = [*launcher, "--master_port", free_port()] if ranks > 1 else []
        run = [*launcher, REPO / "scripts/bench/client_runs.py", "steps", "steps.json", trainer, *schedule]
        shop.call(*run, python=interpreter, package=package)
        found.append(read_json(shop.root / "steps.json"))
    if found[0] != found[1]:
        raise ClientError(f"{found[0]}, our trainer {found[1]}")
    return f"{found[0]['steps']} steps with the same learning rates"


# ---- evaluation suites


def check_lmms_eval(checkout: Path, shop: Workshop) -> str:
    """Ask lmms-eval's adapter."""
    printed = shop.harness("lmms_eval", shop.model, shop.image, paths=[checkout])
    return f"answered {printed.splitlines()[-1]!r}"


def check_vlmevalkit(checkout: Path, shop: Workshop) -> str:
    """Ask VLMEvalKit's adapter."""
    printed = shop.harness("vlmevalkit", checkout, shop.model, shop.image, paths=[checkout])
    return f"answered {printed.splitlines()[-2]!r}, in a chat {printed.splitlines()[-1]!r}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llava", type=Path, metavar="DIR", help="haotian-liu/LLaVA")
    parser.add_argument("--lmms-eval", type=Path, metavar="DIR", help="EvolvingLMMs-Lab/lmms-eval")
    parser.add_argument("--vlmevalkit", type=Path, metavar="DIR", help="open-compass/VLMEvalKit")
    parser.add_argument("--transformers4", metavar="PYTHON", help="with transformers 4.37.2; needs --llava")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows whose name contains this")
    flags = parser.parse_args()
    if flags.transformers4 and not flags.llava:
        parser.error("--transformers4 needs --llava")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        checks: list[tuple[str, Callable[[], str]]] = []
        if flags.llava:
            checks += llava_checks(flags.llava.resolve(), shop)
        if flags.transformers4:
            checks += file_checks(flags.llava.resolve(), flags.transformers4, shop)
            checks += step_checks(flags.llava.resolve(), flags.transformers4, shop)
        if flags.lmms_eval:
            checks.append(("lmms-eval", functools.partial(check_lmms_eval, flags.lmms_eval.resolve(), shop)))
        if flags.vlmevalkit:
            kit = flags.vlmevalkit.resolve()
            checks.append(("VLMEvalKit", functools.partial(check_vlmevalkit, kit, shop)))
        print("| program | result | s |\n|---|---|---|")
        for name, check in checks:
            if flags.only not in name:
                continue
            began = time.monotonic()
            try:
                result = check()
            except ClientError as error:
                result, failed = f"**failed**: {error}", failed + 1
            print(f"| {name} | {result} | {time.monotonic() - began:.0f} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(main)
