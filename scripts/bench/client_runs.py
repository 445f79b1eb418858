"""What `clients.py` runs in processes of its own: a program, an adapter on one question, a model's logits.

Imports nothing of this package: `llava` is whatever the process's PYTHONPATH says.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

QUESTION = "What is in the picture?\nAnswer the question using a single word or phrase."
LENGTH = 12  # text tokens of the probe; an image stands behind the first


def keep_on_cpu() -> None:
    """Without a GPU, let `.cuda()` and "cuda" mean the CPU: these programs name no other device."""
    if torch.cuda.is_available():
        return
    plain: Any = torch.Tensor.to

    def to(tensor: Any, *rest: Any, **more: Any) -> Any:
        def here(value: Any) -> Any:
            is_gpu = isinstance(value, str | torch.device) and str(value).startswith("cuda")
            return "cpu" if is_gpu else value

        return plain(tensor, *map(here, rest), **{name: here(value) for name, value in more.items()})

    stay: Any = lambda self, *rest, **more: self  # noqa: E731
    torch.Tensor.cuda = torch.nn.Module.cuda = stay  # type: ignore[method-assign]
    torch.Tensor.to = to  # type: ignore[method-assign, assignment]


def run_program(file: str, *arguments: str) -> None:
    """Run a file as the main program."""
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")


def run_predict(file: str, image: str) -> None:
    """Ask the original's predict.py, whose base class comes from the package cog."""
    cog: Any = ModuleType("cog")
    cog.BasePredictor = object
    cog.Path = Path
    cog.Input = lambda default=None, **rules: default
    cog.ConcatenateIterator = list
    sys.modules["cog"] = cog
    predictor = runpy.run_path(file)["Predictor"]()
    predictor.setup()
    settings = {"top_p": 1.0, "temperature": 1e-3, "max_tokens": 8}
    print("".join(predictor.predict(Path(image), QUESTION, **settings)))


def run_judged(file: str, *arguments: str) -> None:
    """Run a program that asks OpenAI's models, with stand-ins for `openai` (below 1) and `ray`."""
    reply = {"choices": [{"message": {"content": "8 4\nThe first is better."}}]}
    openai: Any = ModuleType("openai")
    openai.ChatCompletion = SimpleNamespace(create=lambda **asked: reply)
    openai.error = SimpleNamespace(RateLimitError=ConnectionError)
    ray: Any = ModuleType("ray")
    ray.init, ray.get = lambda: None, list
    ray.remote = lambda **resources: lambda function: SimpleNamespace(remote=function)
    sys.modules |= {"openai": openai, "ray": ray}
    run_program(file, *arguments)


def run_lmms_eval(model: str, image: str) -> None:
    """Ask lmms-eval's adapter: `generate_until`, and the loss of an answer by `loglikelihood`."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava import Llava
    from PIL import Image

    adapter = Llava(pretrained=model, device="cpu", device_map="auto", conv_template="vicuna_v1")
    adapter.task_dict = {"task": {"test": [{"image": Image.open(image).convert("RGB")}]}}
    visual = lambda row: [row["image"]]  # noqa: E731
    place = {"idx": 0, "metadata": {"task": "task", "doc_id": 0, "repeats": 1}}
    asked = (QUESTION, {"max_new_tokens": 8}, visual, 0, "task", "test")
    (answer,) = adapter.generate_until([Instance("generate_until", asked, **place)])
    told = (QUESTION, "red", visual, 0, "task", "test")
    ((loss, _),) = adapter.loglikelihood([Instance("loglikelihood", told, **place)])
    assert 0 < loss < 100, loss
    print(answer)


def run_vlmevalkit(checkout: str, model: str, image: str) -> None:
    """Ask VLMEvalKit's adapter by `generate_inner` and `chat_inner`.

    Its packages import every model that they know, so only the adapter's file and its base are imported.
    """
    import string

    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.llava", "vlmeval.dataset", "vlmeval.smp"):
        package: Any = ModuleType(name)
        package.__path__ = [str(Path(checkout, *name.split(".")))]
        package.__getattr__ = lambda wanted: getattr(string, wanted, {})
        sys.modules[name] = package
    adapter = importlib.import_module("vlmeval.vlm.llava.llava").LLaVA(model, max_new_tokens=8)
    message = [{"type": "image", "value": image}, {"type": "text", "value": QUESTION}]
    print(adapter.generate_inner(message))
    print(adapter.chat_inner([{"role": "user", "content": message}]))


def write_logits(model: str, base: str, out: str) -> None:
    """Load a model on the CPU and write its float32 logits (1, L, V) of a fixed prompt with an image."""
    from llava.model.builder import load_pretrained_model

    name = Path(model).name
    _, loaded, processor, _ = load_pretrained_model(model, base or None, name, device="cpu")
    loaded = loaded.float()
    loaded.get_vision_tower().float()
    assert processor is not None
    side = processor.crop_size["height"]
    pixels = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
    ids = torch.tensor([[1, -200, *range(3, LENGTH + 2)]])
    with torch.inference_mode():
        logits = loaded(input_ids=ids, images=pixels, image_sizes=[(side, side)]).logits
    torch.save(logits, out)


def write_steps(out: str, trainer: str, *numbers: str) -> None:
    """Train a tiny language model and write the learning rate after each step, as logged.

    Args:
        out: A JSON file.
        trainer: The module and name of a Trainer.
        numbers: Samples, samples in a batch, batches in a step, and epochs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    samples, batch, accumulation = map(int, numbers[:3])
    module, name = trainer.rsplit(".", 1)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    # A share of the steps; renamed in transformers 5.
    warm = "warmup_ratio" if hasattr(TrainingArguments, "warmup_ratio") else "warmup_steps"
    settings: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": float(numbers[3]),
        **{"lr_scheduler_type": "cosine", warm: 0.1, "learning_rate": 1e-3, "logging_steps": 1},
        **{"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True},
    }
    row = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    run = getattr(importlib.import_module(module), name)(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)),
        args=TrainingArguments(output_dir=f"{out}.run", **settings),
        train_dataset=[row] * samples,
    )
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    if run.args.process_index == 0:
        Path(out).write_text(json.dumps({"steps": run.state.global_step, "rates": rates}))


RUNS = SimpleNamespace(
    program=run_program,
    predict=run_predict,
    judged=run_judged,
    lmms_eval=run_lmms_eval,
    vlmevalkit=run_vlmevalkit,
    logits=write_logits,
    steps=write_steps,
)

if __name__ == "__main__":
    keep_on_cpu()
    getattr(RUNS, sys.argv[1])(*sys.argv[2:])
