"""Flags and data of runs on two processes, and how their results are compared."""

from __future__ import annotations

import json
from pathlib import Path

from torch.utils.data import RandomSampler

from llava.data.sampler import EpochSampler
from support.training_processes import trained_weights

STEPS, BATCH, SEED = 3, 2, 42


# The batches that two ranks take in turn: i is a sample with an image, t one without.
BATCHES = ["it", "tt", "tt", "ii", "ii", "ti"]


# Rows and columns of the table in scripts/v1_5/DISTRIBUTED.md, as flags.
WAYS = {
    "one process": ["--gradient_accumulation_steps", "2"],
    "DDP": [],
    "ZeRO-2": ["--deepspeed", "scripts/zero2.json"],
    "ZeRO-3": ["--deepspeed", "scripts/zero3.json"],
    "ZeRO-3-offload": ["--deepspeed", "scripts/zero3_offload.json"],
    "FSDP": ["--fsdp", "True"],
}


LORA = ["--lora_enable", "True", "--lora_r", "8", "--lora_dropout", "0", "--mm_projector_lr", "2e-4"]


# The largest difference from the losses of one process, which are about 8.
TOLERANCE = {"32": 1e-5, "16": 0.03}


def mixed_data(golden: Path, folder: Path) -> Path:
    """Write samples with and without an image, so that in some steps only one of two ranks has one."""
    indices = range(2 * BATCH * STEPS)
    order = EpochSampler(RandomSampler(indices), seed=SEED)
    has_image = dict(zip(order, "".join(BATCHES), strict=True))
    images = sorted(path.name for path in (golden / "images").glob("[a-f]_*.png"))
    rows: list[dict[str, object]] = []
    for index in indices:
        turns = [{"from": "human", "value": f"How much is {index} and 1?"}]
        row: dict[str, object] = {"id": str(index), "conversations": turns}
        if has_image[index] == "i":
            turns[0]["value"] = "<image>\nWhat is to be seen?"
            row["image"] = images[index % len(images)]
        turns.append({"from": "gpt", "value": f"It is {index + 1}."})
        rows.append(row)
    path = folder / "mixed.json"
    path.write_text(json.dumps(rows))
    return path


def common_flags(golden: Path, data: Path) -> list[str]:
    weights = golden / "weights"
    words = f"""--model_name_or_path {weights}/tiny-vicuna-v1.5 --version v1 --model_max_length 256
        --vision_tower {weights}/tiny-clip-vit-patch14-56 --mm_vision_select_layer -2
        --mm_projector_type mlp2x_gelu --pretrain_mm_mlp_adapter {weights}/tiny-pretrain/mm_projector.bin
        --mm_use_im_patch_token False --data_path {data} --image_folder {golden}/images
        --image_aspect_ratio pad --gradient_checkpointing True --max_steps {STEPS} --seed {SEED}
        --per_device_train_batch_size {BATCH} --learning_rate 2e-3 --lr_scheduler_type cosine
        --warmup_ratio 0.25 --logging_steps 1 --save_strategy no --report_to none --disable_tqdm True"""
    return words.split()


def logged(folder: Path, what: str) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry[what] for entry in state["log_history"] if what in entry and "loss" in entry]


def differences(ours: Path, single: Path, precision: str) -> list[str]:
    """List how a run differs from that of one process: losses, learning rates, weights."""
    found = []
    loss = max(
        abs(one - other) for one, other in zip(logged(ours, "loss"), logged(single, "loss"), strict=True)
    )
    if not loss <= TOLERANCE[precision]:
        found.append(f"losses differ by {loss:g}")
    if logged(ours, "learning_rate") != logged(single, "learning_rate"):
        found.append(f"learning rates {logged(ours, 'learning_rate')}")
    weights, wanted = trained_weights(ours), trained_weights(single)
    if set(weights) != set(wanted):
        return [*found, f"other weights are saved: {sorted(set(weights) ^ set(wanted))[:3]}"]
    if precision == "32":
        # A projector trained at the wrong rate would be off by a hundred times this.
        far = max(
            float((weights[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1)) for name in wanted
        )
        if not far < 1e-4:
            found.append(f"weights differ by {far:g} of their norm")
    return found
