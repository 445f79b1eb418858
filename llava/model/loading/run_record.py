"""The file `llava_run.json` beside a run's weights: what they were trained on, and how.

The file is one JSON object::

    {"kind": "adapter",
     "base": {"name": "lmsys/vicuna-7b-v1.5", "dtype": "float16", "fingerprint": "9f86d081884c7d65"},
     "vision_tower": "openai/clip-vit-large-patch14-336", "projector": "mlp2x_gelu", "template": "v1",
     "data": {"playground/data/llava_v1_5_mix665k.json": "the file's sha256"},
     "versions": {"llava": "1.0.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
     "recipe": {"learning_rate": 0.0002}}            the flags that decide what is learned

A fingerprint is made of the name, the shape and the first values of every weight of the language model's
layers. It takes a second where a hash of 14 GB takes a minute, and two models of equal shape still differ in
it. It does not depend on the files' format or number. It does depend on the precision: weights in another one
are not compared.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch

from llava.errors import CheckpointError, shown
from llava.model.loading.checkpoint import read_json_object
from llava.model.loading.locate import run_folders
from llava.model.loading.weights import find_weight_files, read_first_values
from llava.schema import JsonObject

logger = logging.getLogger(__name__)

RUN_FILE = "llava_run.json"


def read_run_record(folder: Path) -> JsonObject:
    """Return what the `llava_run.json` of a checkpoint or of its run says, {} if there is none.

    Raises:
        CheckpointError: It is not a JSON object.
    """
    path = next((place / RUN_FILE for place in run_folders(folder) if (place / RUN_FILE).is_file()), None)
    return read_json_object(path) if path else {}


def fingerprint_base(folder: Path) -> dict[str, str]:
    """Return the precision and the fingerprint of a language model's weights; {} if there are none."""
    heads = {
        name: head
        for path in find_weight_files(folder)
        for name, head in read_first_values(path, _is_in_a_layer).items()
    }
    if not heads:
        return {}
    digest, dtypes = hashlib.sha256(), set()
    for name in sorted(heads):
        shape, values = heads[name]
        digest.update(f"{name}{shape}".encode() + values.view(torch.uint8).numpy().tobytes())
        dtypes.add(str(values.dtype).removeprefix("torch."))
    return {"dtype": ", ".join(sorted(dtypes)), "fingerprint": digest.hexdigest()[:16]}


def require_trained_base(folder: Path, base: Path) -> None:
    """Check that a base is the one that the adapter or projector in `folder` was trained on.

    Without a record nothing is checked.

    Raises:
        CheckpointError: It has other weights.
    """
    recorded = read_run_record(folder).get("base")
    if not isinstance(recorded, dict) or "fingerprint" not in recorded:
        return
    found = fingerprint_base(base)
    if found.get("dtype") != recorded.get("dtype"):
        logger.info(
            f"{base}: has its weights in {found.get('dtype')}, those that {folder} was trained on were in "
            f"{shown(recorded.get('dtype'))}; whether they are the same is not checked"
        )
    elif found["fingerprint"] != recorded["fingerprint"]:
        raise CheckpointError(
            f"{base}: is not the base that {folder} was trained on, {shown(recorded.get('name'))}: it "
            f"has other weights; give that one, or remove {RUN_FILE} there to use this one all the same",
            code="base-mismatch",
        )


def _is_in_a_layer(name: str) -> bool:
    return name.startswith("model.layers.") and name.endswith(".weight")
