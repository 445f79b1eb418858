"""Plan a run before its first step, and log the plan, so that a wrong setting costs no hours.

The log shows one sample as the model reads it, the memory needed and the number of steps; and, once the speed
is known, the hours left.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import truediv
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.mixture import TrainingData
from llava.errors import SettingsError
from llava.model.recipe import Recipe
from llava.prompts.labels import Supervised
from llava.train.planning import memory
from llava.train.planning.footprint import Footprint, measure, numel
from llava.train.planning.memory import SHARE, Batch, Plan, Sharing
from llava.train.planning.recompute import choose_recomputed_layers

if TYPE_CHECKING:  # the trainer imports planning
    from llava.train.arguments import TrainingArguments
    from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)

# Longer texts are cut in the log.
_MOST_CHARACTERS = 2000
# The speed is measured between these steps: the first ones are slower.
_SLOW_STEPS, _MEASURED_STEPS = 5, 20


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run is going to need.

    Attributes:
        footprint: What the model takes.
        batch: The largest batch of the data.
        sharing: What the ranks share.
        room: Bytes that this rank may use on its device.
        recomputed: How many of the first layers recompute their activations.
        memory: The bytes of each part.
    """

    footprint: Footprint
    batch: Batch
    sharing: Sharing
    room: float
    recomputed: int
    memory: Plan


def plan_run(trainer: LLaVATrainer, dataset: TrainingData) -> RunPlan:
    """Estimate the memory of a run, and choose how many layers to recompute where the recipe leaves it open.

    Every rank must call this, before DeepSpeed wraps the model.
    """
    args, model = trainer.args, trainer.model
    footprint = measure(model, device=args.device, autocast=args.autocast_dtype)
    batch = largest_batch(dataset, args, _image_positions(trainer, dataset), trainer.recipe)
    sharing, room = Sharing.of(args), memory.room_on(args.device, model)
    recomputed = choose_recomputed_layers(trainer.recipe, args, footprint, batch, sharing, room)
    planned = memory.plan_memory(footprint, batch.passed(recomputed), sharing)
    return RunPlan(footprint, batch, sharing, room, recomputed, planned)


def log_startup(trainer: LLaVATrainer, dataset: TrainingData, plan: RunPlan) -> None:
    """Log one sample and the memory plan; if the plan does not fit, warn and name flags that help."""
    args = trainer.args
    logger.info("%s", describe_sample(dataset, 0, _image_positions(trainer, dataset)))
    logger.info("%s", describe_plan(plan, str(args.device)))
    if args.process_index == 0 and (advice := advise(plan, args)):
        logger.warning("%s", advice)


def _image_positions(trainer: LLaVATrainer, dataset: TrainingData) -> int:
    model = trainer.model
    return model.image_positions if dataset.data_args.is_multimodal else 1


def describe_sample(dataset: TrainingData, index: int, image_positions: int) -> str:
    """Return a sample's text as the model reads it.

    Supervised text stands in [[ ]], an image as <image: N positions>.
    """
    sample, made = dataset.samples[index], dataset.encode(index)
    kept = _kept(made, image_positions, dataset.tokenizer.model_max_length)
    text = "".join(_marked(made.input_ids[:kept], made.labels[:kept], dataset.tokenizer, image_positions))
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]} ... ({len(text) - _MOST_CHARACTERS:,} characters more)"
    supervised = sum(label != IGNORE_INDEX for label in made.labels[:kept])
    positions = _positions(made, image_positions, dataset.tokenizer.model_max_length)
    learned = (
        f"{supervised:,} of {positions:,} positions" if made.problem is None else f"nothing: {made.problem}"
    )
    return f"sample {sample.id!r}; in [[ ]] is what is learned ({learned}):\n{text}"


def largest_batch(
    dataset: TrainingData, args: TrainingArguments, image_positions: int, recipe: Recipe
) -> Batch:
    """Return the batch of the longest samples, the most memory a step can need."""
    samples = args.per_device_train_batch_size
    longest = np.argsort(np.asarray(dataset.lengths))[-samples:]
    limit = dataset.tokenizer.model_max_length
    encoded = [dataset.encode(int(index)) for index in longest]
    positions = [_positions(made, image_positions, limit) for made in encoded]
    learned = [sum(label != IGNORE_INDEX for label in made.labels) for made in encoded]
    row = recipe.micro_batch_tokens if recipe.pack else None
    share = min(1.0, max(map(truediv, learned, positions))) if recipe.sparse_loss else 1.0
    return Batch(samples, args.gradient_accumulation_steps, max(positions), row, share)


def describe_plan(plan: RunPlan, device: str) -> str:
    """Return the memory plan as a table."""
    passed = plan.batch.passed(plan.recomputed)
    lines = [
        f"memory of each process on {device} for up to {passed.positions:,} positions at a time, "
        f"{plan.recomputed} of {plan.footprint.layers} layers recomputed:"
    ]
    lines += [f"  {name:22} {_size(size)}" for name, size in plan.memory.device.items()]
    if plan.memory.reused:
        lines.append(f"  {'less what is reused':22} {_size(-plan.memory.reused)}")
    lines.append(f"  {'in all':22} {_size(plan.memory.peak)}, of {_size(plan.room).strip()} that are free")
    lines += [f"  {name:22} {_size(size)}, in the host's memory" for name, size in plan.memory.host.items()]
    return "\n".join(lines)


def describe_trained(model: nn.Module) -> list[str]:
    """Say for each part of the model how many of its tensors and parameters are trained.

    Raises:
        SettingsError: Nothing is trained.
    """
    parts = {"mm_projector": "projector", "vision_tower": "vision tower", "lora_": "LoRA adapter"}
    sizes: dict[str, list[tuple[int, bool]]] = {}
    for name, parameter in model.named_parameters():
        part = next((text for mark, text in parts.items() if mark in name), "language model")
        sizes.setdefault(part, []).append((numel(parameter), parameter.requires_grad))
    lines = []
    for part, tensors in sizes.items():
        trained = [size for size, is_trained in tensors if is_trained]
        lines.append(
            f"trained: {sum(trained):15,} of {sum(size for size, _ in tensors):15,} parameters, "
            f"{len(trained):3} of {len(tensors):3} tensors, {part}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingsError(
            "nothing is left to train: the flags freeze the whole model; remove one of the freeze flags",
            code="nothing-to-train",
        )
    return lines


class Outlook(TrainerCallback):
    """Log how many steps there will be and, once it is known, how long they take."""

    def __init__(self, dataset: TrainingData) -> None:
        self._dataset = dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        self._begun_at = state.global_step
        shares = (args.world_size, args.gradient_accumulation_steps, args.per_device_train_batch_size)
        processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
        logger.info(
            f"{state.max_steps - state.global_step:,} of {state.max_steps:,} steps to go, "
            f"{args.get_warmup_steps(state.max_steps):,} of all warm up; {math.prod(shares):,} samples a "
            f"step ({processes} x {shares[1]} x {shares[2]}), {len(self._dataset):,} samples in all"
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        done = state.global_step - self._begun_at
        if done == _SLOW_STEPS:
            self._since = time.perf_counter()
        elif done == _MEASURED_STEPS:
            seconds = (time.perf_counter() - self._since) / (_MEASURED_STEPS - _SLOW_STEPS)
            hours = seconds * (state.max_steps - state.global_step) / 3600
            logger.info(f"step {state.global_step:,}: {seconds:.2f} s a step, {hours:.1f} h to go")


def advise(plan: RunPlan, args: TrainingArguments) -> str | None:
    """Name the flags that make the plan fit; None if it does."""
    if plan.memory.peak <= SHARE * plan.room:
        return None
    can_quantise = args.lora_enable and args.bits == 16
    smaller = memory.remedies(
        plan.footprint, plan.batch, plan.sharing, recomputed=plan.recomputed, can_quantise=can_quantise
    )
    for flags, planned in smaller:
        if planned.peak <= SHARE * plan.room:
            flags += " without --fsdp" if args.fsdp and "--deepspeed" in flags else ""
            size = _size(planned.peak).strip()
            return f"this will hardly fit into the device's memory: {flags} takes {size}"
    return "this will hardly fit into the device's memory, whatever the flags: use a device with more memory"


def _kept(made: Supervised, image_positions: int, limit: int) -> int:
    """Return how many ids remain when a sample is cut at the model's length; the cut may fall in an image."""
    positions = kept = 0
    for index in made.input_ids:
        if positions >= limit:
            break
        positions += image_positions if index == IMAGE_TOKEN_INDEX else 1
        kept += 1
    return kept


def _positions(made: Supervised, image_positions: int, limit: int) -> int:
    images = made.input_ids.count(IMAGE_TOKEN_INDEX)
    return min(len(made.input_ids) + images * (image_positions - 1), limit)


def _marked(
    ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, image_positions: int
) -> Iterator[str]:
    """Yield the pieces of a text, with images and supervised pieces marked."""
    kinds = [
        "image" if index == IMAGE_TOKEN_INDEX else "given" if label == IGNORE_INDEX else "learned"
        for index, label in zip(ids, labels, strict=True)
    ]
    start = begun = 0  # of this stretch; of the text since the last image, from which words' spaces follow
    for kind, group in groupby(kinds):
        stop = start + len(list(group))
        if kind == "image":
            yield f"<image: {image_positions} positions>" * (stop - start)
            begun = stop
        else:
            before, whole = tokenizer.decode(ids[begun:start]), tokenizer.decode(ids[begun:stop])
            text = whole.removeprefix(before)
            yield f"[[{text}]]" if kind == "learned" else text
        start = stop


def _size(size: float) -> str:
    return f"{size / 2**30:7.1f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:7.1f} MiB"
