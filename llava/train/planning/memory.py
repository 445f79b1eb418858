"""How much memory a device will need at most, and what to change where it has less: arithmetic alone.

Not in it: the driver's own memory, fragments, and buffers that come and go; `SHARE` leaves room for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from llava.train.planning.footprint import Footprint, stored_bytes

# Of the memory that is free, how much is planned with.
SHARE = 0.9
# ZeRO-3 keeps so many weights in one piece at a time: stage3_max_live_parameters, also its default.
_LIVE_WEIGHTS = 1e9
# Bytes an optimizer keeps for a weight, by a word of its name; two float32 numbers if none fits, as Adam.
_STATES = {"8bit": 2.0, "4bit": 1.0, "adafactor": 0.0, "sgd": 0.0}
# Bytes of a number in 4 bits, with the constants of its block of 64.
_FOUR_BITS = 0.56
_OLDER_CGROUP = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest forward and backward pass of a device.

    Attributes:
        positions: Of all rows, padding included.
        logits: At how many of them logits are made.
        recomputed: How many layers are recomputed instead of kept.
    """

    positions: int
    logits: int
    recomputed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device is given at a time, at its largest.

    Attributes:
        samples: --per_device_train_batch_size.
        accumulation: --gradient_accumulation_steps.
        longest: Positions of the longest sample.
        row: Most positions of a packed row, 0 for no limit; None where rows are padded.
        logits: For what part of the positions logits are made.
    """

    samples: int
    accumulation: int
    longest: int
    row: int | None = None
    logits: float = 1.0

    def passed(self, recomputed: int) -> Pass:
        """The pass it makes, with so many layers recomputed."""
        positions = self.samples * self.longest
        if self.row:
            positions = min(positions, max(self.row, self.longest))
        return Pass(positions, round(positions * self.logits), recomputed)

    def halved(self) -> Batch | None:
        """With the same samples a step in smaller passes; None if a pass is of one sample already."""
        if self.row and self.row > self.longest:
            return replace(self, row=max(self.row // 2, self.longest))
        factor = next((each for each in range(2, self.samples + 1) if self.samples % each == 0), None)
        if factor is None or self.row:
            return None
        return replace(self, samples=self.samples // factor, accumulation=self.accumulation * factor)

    @property
    def flags(self) -> str:
        """The flags that ask for it."""
        if self.row:
            return f"--micro_batch_tokens {self.row}"
        return (
            f"--per_device_train_batch_size {self.samples} --gradient_accumulation_steps {self.accumulation}"
        )


@dataclass(frozen=True, slots=True)
class Sharing:
    """What processes share.

    Attributes:
        processes: How many there are.
        zero_stage: DeepSpeed's; 0 without it. FSDP shares what stage 3 shares.
        optimizer: Bytes of an optimizer's state for each trained number.
        offloads_optimizer: Gradients and optimizer are in the host's memory.
        offloads_weights: Weights are, too.
    """

    processes: int = 1
    zero_stage: int = 0
    optimizer: float = 8.0
    offloads_optimizer: bool = False
    offloads_weights: bool = False

    @classmethod
    def of(cls, args: Any) -> Sharing:
        """As the flags say."""
        known = (size for word, size in _STATES.items() if word in str(args.optim).lower())
        optimizer = next(known, 8.0)
        if not args.deepspeed:
            return cls(args.world_size, 3 if args.fsdp else 0, optimizer)
        chosen = args.hf_deepspeed_config.get_value
        where = (chosen(f"zero_optimization.offload_{what}.device") for what in ("optimizer", "param"))
        # DeepSpeed keeps float32 masters of what it trains.
        return cls(args.world_size, args.deepspeed_plugin.zero_stage, 4 + optimizer, *map(_is_host, where))


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what they are for, of each process: on its device, and in the host's memory."""

    device: dict[str, float]
    host: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes on the device, all at one time."""
        return sum(self.device.values())


def plan(footprint: Footprint, passed: Pass, sharing: Sharing) -> Plan:
    """What a process will hold when it is fullest: as the backward pass begins."""
    stage, processes = sharing.zero_stage, sharing.processes
    of_weights = processes if stage == 3 else 1
    # DDP has all gradients a second time, in the buckets it sends; ZeRO-2 keeps those of its own part.
    copies = 1 / processes if stage >= 2 else 2 if processes > 1 and stage == 0 else 1
    weights = {
        "frozen weights": footprint.frozen / of_weights,
        "trained weights": footprint.trained / of_weights,
    }
    learning = {
        "gradients": footprint.trained * copies,
        "optimizer": footprint.trained_count * sharing.optimizer / (processes if stage else 1),
    }
    working = {
        "activations": _activations(footprint, passed),
        "logits and loss": footprint.logit * passed.logits,
    }
    if stage == 3:
        whole = footprint.frozen + footprint.trained
        working = {"weights in one piece": min(whole, _LIVE_WEIGHTS * footprint.weight_size), **working}
    host: dict[str, float] = {}
    if sharing.offloads_optimizer:
        host, learning = {**host, **learning}, {}
    if sharing.offloads_weights:
        host, weights = {**weights, **host}, {}
    return Plan({**weights, **learning, **working}, host)


def layers_to_recompute(footprint: Footprint, passed: Pass, sharing: Sharing, room: float) -> int:
    """The fewest layers to recompute for a pass to fit into `room` bytes; all of them if it never does."""
    for count in range(footprint.layers):
        if plan(footprint, replace(passed, recomputed=count), sharing).peak <= SHARE * room:
            return count
    return footprint.layers


def remedies(
    footprint: Footprint, batch: Batch, sharing: Sharing, *, recomputed: int, can_quantise: bool
) -> Iterator[tuple[str, Plan]]:
    """Flags that take less memory and learn the same, each with all before it, and what is needed then.

    Args:
        footprint: The model's, as it is.
        batch: As it is.
        sharing: As it is.
        recomputed: Layers that are recomputed as it is.
        can_quantise: Whether the frozen weights are an adapter's base, and in 16 or 32 bits.
    """
    flags = []
    if recomputed < footprint.layers:
        flags.append("--checkpoint_layers all" if recomputed else "--gradient_checkpointing True")
        recomputed = footprint.layers
        yield " ".join(flags), plan(footprint, batch.passed(recomputed), sharing)
    while (smaller := batch.halved()) is not None:
        batch = smaller
        yield " ".join([*flags, batch.flags]), plan(footprint, batch.passed(recomputed), sharing)
    flags.append(batch.flags)
    if can_quantise and sharing.zero_stage < 3:
        quantised = replace(footprint, frozen=footprint.frozen * _FOUR_BITS / footprint.weight_size)
        yield " ".join([*flags, "--bits 4"]), plan(quantised, batch.passed(recomputed), sharing)
    if sharing.processes > 1 and sharing.zero_stage < 3:
        sharing = replace(sharing, zero_stage=3)
        yield (
            " ".join([*flags, "--deepspeed scripts/zero3.json"]),
            plan(footprint, batch.passed(recomputed), sharing),
        )
    if sharing.zero_stage == 3 and not sharing.offloads_weights:
        sharing = replace(sharing, offloads_weights=True, offloads_optimizer=True)
        yield (
            " ".join([*flags, "--deepspeed scripts/zero3_offload.json"]),
            plan(footprint, batch.passed(recomputed), sharing),
        )


def room_on(device: torch.device, model: nn.Module) -> float:
    """Bytes that a process may use on its device: what is free, and what its model already takes there."""
    own = sum(stored_bytes(each) for each in model.parameters() if each.device.type == device.type)
    return free_memory(device) + own


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU; on the CPU, an equal part for each of this machine's processes."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    free = min(float(psutil.virtual_memory().available), _left_by_cgroup(Path("/sys/fs/cgroup")))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _activations(footprint: Footprint, passed: Pass) -> float:
    # A layer that is recomputed is whole once more, but by then those that were kept are gone.
    whole = max(footprint.layers - passed.recomputed, 1)
    a_position = whole * footprint.layer_position + passed.recomputed * footprint.layer_input
    # Casts of weights stay to the end of the forward pass, recomputed or not.
    return footprint.layers * footprint.layer_fixed + (a_position + footprint.outside) * passed.positions


def _is_host(device: str | None) -> bool:
    return device not in (None, "none")


def _left_by_cgroup(root: Path) -> float:
    """What a container may still use: of its limit, less what it uses that cannot be given up at once."""
    for limit, usage in (("memory.max", "memory.current"), _OLDER_CGROUP):
        try:
            most, used = (root / limit).read_text(), float((root / usage).read_text())
            stat = dict(
                line.split() for line in (root / usage).with_name("memory.stat").read_text().splitlines()
            )
            return float(most) - used + float(stat.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file, or no limit ("max")
            continue
    return float("inf")
