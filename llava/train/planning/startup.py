"""What a run says before its first step, so that no hour is lost to a wrong setting.

One sample as it is learned from, the memory that will be needed, the number of steps; and the hours, as soon
as the speed is known.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from operator import truediv
from typing import Any

import numpy as np
from transformers import TrainerCallback

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.dataset import LazySupervisedDataset
from llava.model.recipe import Recipe
from llava.prompts.labels import Supervised
from llava.train.planning import memory
from llava.train.planning.footprint import Footprint, measure
from llava.train.planning.memory import SHARE, Batch, Plan, Sharing
from llava.train.planning.recompute import layers_of

logger = logging.getLogger(__name__)

# More of a sample's text than this is not shown.
_MOST_CHARACTERS = 2000
# Steps from which and to which the speed is measured: the first ones are slower.
_SLOW_STEPS, _MEASURED_STEPS = 5, 20


def announce(trainer: Any, dataset: LazySupervisedDataset) -> None:
    """Log a sample and the memory plan, with what to change if it does not fit; steps follow as they begin.

    The plan decides how many layers the trainer's recipe recomputes, if that is as memory needs.

    Every process must call this, before DeepSpeed has the model; those that log only warnings say nothing.

    Args:
        trainer: That is going to train.
        dataset: What it learns from.
    """
    trainer.add_callback(Outlook(dataset))
    is_multimodal = dataset.data_args.is_multimodal
    image_positions = trainer.model.image_positions if is_multimodal else 1
    logger.info("%s", describe_sample(dataset, 0, image_positions))
    args = trainer.args
    footprint = measure(trainer.model, device=args.device, autocast=_autocast(args))
    batch = largest_batch(dataset, args, image_positions, trainer.recipe)
    sharing, room = Sharing.of(args), memory.room_on(args.device, trainer.model)
    recomputed = layers_of(trainer.recipe, args, footprint, batch, sharing, room)
    trainer.recipe = replace(trainer.recipe, checkpoint_layers=recomputed)
    planned = memory.plan(footprint, batch.passed(recomputed), sharing)
    logger.info("%s", describe_plan(planned, room, str(args.device), batch, recomputed, footprint.layers))
    if planned.peak > SHARE * room and args.process_index == 0:
        can_quantise = args.lora_enable and args.bits == 16
        logger.warning("%s", _advice(footprint, batch, sharing, recomputed, can_quantise, room))


def describe_sample(dataset: LazySupervisedDataset, index: int, image_positions: int) -> str:
    """A sample's text as the model reads it: what is learned in [[ ]], an image as <image: N positions>."""
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


def largest_batch(dataset: LazySupervisedDataset, args: Any, image_positions: int, recipe: Recipe) -> Batch:
    """The batch with the longest samples that the data has: grouped by length, they do come together."""
    samples = args.per_device_train_batch_size
    longest = np.argsort(np.asarray(dataset.lengths))[-samples:]
    limit = dataset.tokenizer.model_max_length
    encoded = [dataset.encode(int(index)) for index in longest]
    positions = [_positions(made, image_positions, limit) for made in encoded]
    learned = [sum(label != IGNORE_INDEX for label in made.labels) for made in encoded]
    row = recipe.micro_batch_tokens if recipe.pack else None
    share = min(1.0, max(map(truediv, learned, positions))) if recipe.sparse_loss else 1.0
    return Batch(samples, args.gradient_accumulation_steps, max(positions), row, share)


def describe_plan(planned: Plan, room: float, device: str, batch: Batch, recomputed: int, layers: int) -> str:
    """The plan as a table."""
    passed = batch.passed(recomputed)
    lines = [
        f"memory of each process on {device} for up to {passed.positions:,} positions at a time, "
        f"{recomputed} of {layers} layers recomputed:"
    ]
    lines += [f"  {name:22} {_size(size)}" for name, size in planned.device.items()]
    lines.append(f"  {'in all':22} {_size(planned.peak)}, of {_size(room).strip()} that are free")
    lines += [f"  {name:22} {_size(size)}, in the host's memory" for name, size in planned.host.items()]
    return "\n".join(lines)


class Outlook(TrainerCallback):
    """Logs how many steps there will be, and once how long they take."""

    def __init__(self, dataset: LazySupervisedDataset) -> None:
        self._dataset = dataset

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._begun_at = state.global_step
        shares = (args.world_size, args.gradient_accumulation_steps, args.per_device_train_batch_size)
        processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
        logger.info(
            f"{state.max_steps - state.global_step:,} of {state.max_steps:,} steps to go, "
            f"{args.get_warmup_steps(state.max_steps):,} of all warm up; {math.prod(shares):,} samples a "
            f"step ({processes} x {shares[1]} x {shares[2]}), {len(self._dataset):,} samples in all"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        done = state.global_step - self._begun_at
        if done == _SLOW_STEPS:
            self._since = time.perf_counter()
        elif done == _MEASURED_STEPS:
            seconds = (time.perf_counter() - self._since) / (_MEASURED_STEPS - _SLOW_STEPS)
            hours = seconds * (state.max_steps - state.global_step) / 3600
            logger.info(f"step {state.global_step:,}: {seconds:.2f} s a step, {hours:.1f} h to go")


def _autocast(args: Any) -> Any:
    """In what products are computed if not in what the weights are in; DeepSpeed casts the weights."""
    return args.compute_dtype if (args.bf16 or args.fp16) and not args.deepspeed else None


def _advice(
    footprint: Footprint, batch: Batch, sharing: Sharing, recomputed: int, can_quantise: bool, room: float
) -> str:
    smaller = memory.remedies(footprint, batch, sharing, recomputed=recomputed, can_quantise=can_quantise)
    flags, planned = next(
        ((flags, each) for flags, each in smaller if each.peak <= SHARE * room), (None, None)
    )
    if planned is None:
        return "this will hardly fit into the device's memory, whatever the flags: take one with more"
    return f"this will hardly fit into the device's memory: {flags} takes {_size(planned.peak).strip()}"


def _kept(made: Supervised, image_positions: int, limit: int) -> int:
    """How many ids are left where a sample is cut at the model's length; an image may be cut in two."""
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


def _marked(ids: list[int], labels: list[int], tokenizer: Any, image_positions: int) -> Iterator[str]:
    """The stretches of a text, images and supervised ones marked."""
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
    return f"{size / 2**30:7.1f} GiB" if size >= 2**30 else f"{size / 2**20:7.1f} MiB"
