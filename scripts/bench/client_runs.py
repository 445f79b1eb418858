"""What `clients.py` runs in processes of its own: a program, an adapter on one question, a model's logits.

Imports nothing of this package: `llava` is whatever the process's PYTHONPATH says.
"""

from __future__ import annotations

import importlib
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


RUNS = SimpleNamespace(
    program=run_program,
    predict=run_predict,
    lmms_eval=run_lmms_eval,
    vlmevalkit=run_vlmevalkit,
    logits=write_logits,
)

if __name__ == "__main__":
    keep_on_cpu()
    getattr(RUNS, sys.argv[1])(*sys.argv[2:])
