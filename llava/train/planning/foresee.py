"""Foresee a run from its flags, config.json and the data's index: memory, steps, cut samples and hours."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.dataset import LazySupervisedDataset
from llava.data.mixture import TrainingData, data_files, mix
from llava.errors import SettingsError
from llava.files import read_json
from llava.prompts.labels import supervise
from llava.tokenizer import load_tokenizer
from llava.train import build
from llava.train.planning import flops, memory
from llava.train.planning.memory import Sharing
from llava.train.planning.recompute import choose_recomputed_layers
from llava.train.planning.sketch import measure_sketch, read_base_config, sketch_model
from llava.train.planning.startup import RunPlan, advise, describe_plan, describe_trained, largest_batch
from llava.train.step.recipe import resolve_recipe

if TYPE_CHECKING:
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

# Share of a card's data-sheet rate that hours are projected by. It is assumed, not measured.
UTILISATION = 0.4
# Samples that lengths are counted on; of more, these are drawn.
_COUNTED = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """What a run is planned for: `gpus` devices of `room` bytes each, on `card` if its speed is known."""

    gpus: int
    room: float
    card: str | None = None
    is_gpu: bool = True


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of drawn samples in positions, uncut; how many positions teach, and how many have an image."""

    positions: np.ndarray
    supervised: int
    images: int


def find_target(args: TrainingArguments) -> Target:
    """Return what `--gpu` and `--gpus` name, or this machine.

    Raises:
        SettingsError: `--gpu` is neither a size nor a known card.
    """
    here = torch.cuda.device_count()
    gpus = args.gpus or here or 1
    if args.gpu is None:
        device = torch.device("cuda" if here else "cpu")
        card = torch.cuda.get_device_name() if here else None
        return Target(gpus, memory.free_memory(device), card, bool(here))
    size = args.gpu.upper().removesuffix("IB").removesuffix("B")
    try:
        return (
            Target(gpus, float(size.removesuffix("G")) * 2**30) if size.endswith("G") else _card(args, gpus)
        )
    except ValueError:
        return _card(args, gpus)


def _card(args: TrainingArguments, gpus: int) -> Target:
    words = set(str(args.gpu).upper().replace("-", " ").split())
    matching = [name for name in flops.CARD_MEMORY if words <= set(name.upper().split())]
    if matching:
        name = min(matching, key=len)  # H100 is not H100 PCIe
        return Target(gpus, flops.CARD_MEMORY[name] * 2**30, name)
    raise SettingsError(
        f"--gpu {args.gpu}: wanted its memory, as 24GB, or one of {', '.join(flops.CARD_MEMORY)}",
        code="unknown-gpu",
    )


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a run is going to do: its sketched model, its data, and the plan of its memory."""

    model: PreTrainedModel
    dataset: TrainingData
    image_positions: int
    target: Target
    plan: RunPlan


def foresee_run(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> Foresight:
    """Sketch the model, open the data, and plan the memory.

    Raises:
        LlavaError: Flags, config or data are invalid.
    """
    target = find_target(training_args)
    model_args.pretrain_mm_mlp_adapter = None  # its weights are not read
    build.resolve_vision_flags(model_args, read_base_config(model_args))
    data_args.is_multimodal = bool(model_args.vision_tower)
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
    if target.is_gpu:
        training_args.deepspeed = training_args.planned_deepspeed  # type: ignore[assignment]
    limit = training_args.model_max_length
    name = model_args.model_name_or_path
    tokenizer = load_tokenizer(name, model_max_length=limit, padding_side="right")
    template = build.template_of(model_args.version)
    files = data_files(data_args.data_path or "")
    parts = [
        LazySupervisedDataset(file.path, tokenizer, data_args, template=template, bad_samples="skip")
        for file in files
    ]
    dataset, _ = mix(parts, files, held_out=data_args.held_out, seed=training_args.order_seed)
    model = sketch_model(tokenizer, model_args, data_args, training_args)
    positions = model.image_positions if data_args.is_multimodal else 1

    recipe = resolve_recipe(training_args, has_shortcuts=data_args.is_multimodal)
    footprint = measure_sketch(model, training_args)
    batch = largest_batch(dataset, training_args, positions, recipe)
    config = read_json(Path(str(training_args.deepspeed))) if training_args.deepspeed else None
    sharing = Sharing.read(
        config,
        target.gpus,
        optim=training_args.optim,
        fsdp=bool(training_args.fsdp),
        on_gpu=target.is_gpu,
    )
    recomputed = choose_recomputed_layers(recipe, training_args, footprint, batch, sharing, target.room)
    planned = memory.plan_memory(footprint, batch.passed(recomputed), sharing)
    plan = RunPlan(footprint, batch, sharing, target.room, recomputed, planned)
    return Foresight(model, dataset, positions, target, plan)


def print_plan(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Print what a run with these flags trains and needs; it trains nothing."""
    seen = foresee_run(model_args, data_args, training_args)
    lines = describe_trained(seen.model)
    room = f"a GPU of {seen.target.room / 2**30:.0f} GiB" if seen.target.is_gpu else "the CPU"
    lines.append(describe_plan(seen.plan, room))
    if advice := advise(seen.plan, training_args):
        lines.append(advice)
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    steps, devices = count_steps(len(seen.dataset), seen.target.gpus, training_args), seen.target.gpus
    lines.append(
        f"{steps:,} steps of {devices * batch:,} samples ({devices} x {batch}); "
        f"{len(seen.dataset):,} samples in all"
    )
    lengths = count_lengths_of_some(seen.dataset, seen.image_positions)
    limit, counted = training_args.model_max_length, len(lengths.positions)
    drawn = "" if counted == len(seen.dataset) else f" (of {counted:,} drawn)"
    lines.append(
        f"{np.mean(lengths.positions > limit):.1%} of the samples are cut at {limit:,} positions{drawn}"
    )
    lines.append(describe_hours(seen, lengths, steps * devices * batch, training_args))
    sys.stdout.write("\n".join(lines) + "\n")


def count_steps(samples: int, devices: int, args: TrainingArguments) -> int:
    """Return the optimizer steps of a run, as transformers counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(samples / (devices * args.per_device_train_batch_size))
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def count_lengths_of_some(dataset: TrainingData, image_positions: int) -> Lengths:
    """Count the positions of up to 2,000 samples, always the same ones of a data set."""
    count = min(len(dataset), _COUNTED)
    chosen = np.random.default_rng(0).choice(len(dataset), count, replace=False)
    positions, supervised, images = [], 0, 0
    for index in chosen:
        made = supervise(
            dataset.samples[int(index)],
            dataset.template,
            dataset.tokenizer,
            max_length=None,
            mm_use_im_start_end=dataset.data_args.mm_use_im_start_end,
        )
        own = made.input_ids.count(IMAGE_TOKEN_INDEX)
        positions.append(len(made.input_ids) + own * (image_positions - 1))
        supervised += sum(label != IGNORE_INDEX for label in made.labels)
        images += own
    return Lengths(np.asarray(positions), supervised, images)


def describe_hours(seen: Foresight, lengths: Lengths, samples: int, args: TrainingArguments) -> str:
    """Say how long `samples` samples take, by the rate that is given, or projected for a known card."""
    card = seen.target.card
    if args.rate is not None:
        rate, source = _read_rate(args.rate), f"at the rate of {args.rate}"
    elif card and (peak := flops.known_rate(card)):
        cut = np.minimum(lengths.positions, args.model_max_length).tolist()
        needed = flops.training_flops(seen.model)
        done = needed.of(cut, logits=lengths.supervised, images=lengths.images) / len(cut)
        # Another forward pass is half of what an adapter needs, and a third of what all weights need.
        share = 1 / 2 if args.lora_enable else 1 / 3
        done *= 1 + share * seen.plan.recomputed / seen.plan.footprint.layers
        rate = seen.target.gpus * UTILISATION * peak / done
        source = f"projected: assumes {UTILISATION:.0%} of the data sheet's rate of {card}"
    else:
        return "hours: give --rate (samples a second, or the output folder of an earlier run)"
    return f"{samples / rate / 3600:.1f} hours at {rate:.3g} samples a second ({source})"


def _read_rate(given: str) -> float:
    """Return a number, or the mean of the rates that an earlier run logged.

    Raises:
        SettingsError: There is neither.
    """
    try:
        rate = float(given)
    except ValueError:
        path = Path(given) / "trainer_state.json" if Path(given).is_dir() else Path(given)
        history = read_json(path).get("log_history", []) if path.is_file() else []
        rates = [entry["samples_per_second"] for entry in history if "samples_per_second" in entry]
        rate = sum(rates) / len(rates) if rates else 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise SettingsError(
            f"--rate {given}: wanted samples a second, or the output folder of a run that logged them",
            code="unknown-rate",
        )
    return rate
