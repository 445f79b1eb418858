"""Estimate the peak memory of a device, and name flags that lower it.

The driver's memory, fragmentation and temporary buffers, except those of AdamW's update, are not estimated;
`SHARE` leaves room for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch
from torch import nn
from transformers.training_args import OptimizerNames

from llava.schema import JsonObject
from llava.train.planning.footprint import Footprint, stored_bytes

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments

# The share of the free memory that a plan may use.
SHARE = 0.9
# ZeRO-3 gathers at most this many elements at a time: the default of stage3_max_live_parameters.
_LIVE_WEIGHTS = 1e9
# Bytes of optimizer state per element, by a word of its name; otherwise two float32 numbers, as for Adam.
_STATES = {"8bit": 2.0, "4bit": 1.0, "adafactor": 0.0, "sgd": 0.0}
# Bytes of a 4-bit element, with its part of the constants of a block of 64.
_FOUR_BITS = 0.56
_OLDER_CGROUP = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest forward and backward pass of a device.

    Attributes:
        positions: Positions of all rows, padding included.
        logits: Number of positions whose logits are computed.
        recomputed: Number of layers that recompute their activations.
        follows: Whether it adds to the gradients of an earlier pass.
    """

    positions: int
    logits: int
    recomputed: int = 0
    follows: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """The largest micro-batch of a device.

    Attributes:
        samples: --per_device_train_batch_size.
        accumulation: --gradient_accumulation_steps.
        longest: Positions of the longest sample.
        row: Most positions of a packed row, 0 for no limit; None for padded rows.
        logits: Share of the positions whose logits are computed.
    """

    samples: int
    accumulation: int
    longest: int
    row: int | None = None
    logits: float = 1.0

    def passed(self, recomputed: int) -> Pass:
        """Return the pass of this batch with `recomputed` layers recomputed."""
        whole = positions = self.samples * self.longest
        if self.row:
            positions = min(positions, max(self.row, self.longest))
        follows = self.accumulation > 1 or positions < whole
        return Pass(positions, round(positions * self.logits), recomputed, follows)

    def halved(self) -> Batch | None:
        """Return the same samples a step in smaller passes; None if a pass has only one sample."""
        if self.row and self.row > self.longest:
            return replace(self, row=max(self.row // 2, self.longest))
        factor = next((count for count in range(2, self.samples + 1) if self.samples % count == 0), None)
        if factor is None or self.row:
            return None
        return replace(self, samples=self.samples // factor, accumulation=self.accumulation * factor)

    @property
    def flags(self) -> str:
        """The flags that ask for this batch."""
        if self.row:
            return f"--micro_batch_tokens {self.row}"
        return (
            f"--per_device_train_batch_size {self.samples} --gradient_accumulation_steps {self.accumulation}"
        )


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the ranks share weights, gradients and optimizer state.

    Attributes:
        processes: Number of ranks.
        zero_stage: DeepSpeed's ZeRO stage; 0 without it. FSDP shares what stage 3 shares.
        optimizer: Bytes of optimizer state per trained element.
        offloads_optimizer: Gradients and optimizer state are in the host's memory.
        offloads_weights: Weights are in the host's memory.
        update: What AdamW makes copies of to update the weights: each weight in turn (two copies, on a CPU),
            all at once (one copy, on a GPU), or none, as its fused form. DeepSpeed's are not estimated.
    """

    processes: int = 1
    zero_stage: int = 0
    optimizer: float = 8.0
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    update: Literal["each", "all", "none"] = "each"

    @classmethod
    def of(cls, args: TrainingArguments) -> Sharing:
        """Read the sharing from the training flags."""
        config = args.hf_deepspeed_config.config if args.deepspeed else None
        on_gpu = args.device.type != "cpu"
        return cls.read(config, args.world_size, optim=args.optim, fsdp=bool(args.fsdp), on_gpu=on_gpu)

    @classmethod
    def read(
        cls,
        deepspeed: JsonObject | None,
        processes: int,
        *,
        optim: str,
        fsdp: bool = False,
        on_gpu: bool = False,
    ) -> Sharing:
        """Read the sharing from DeepSpeed's configuration, None without it, and the optimizer's name."""
        optimizer = next((size for word, size in _STATES.items() if word in optim.lower()), 8.0)
        if deepspeed is None:
            copies: Literal["each", "all"] = "all" if on_gpu else "each"
            update = copies if optim == OptimizerNames.ADAMW_TORCH else "none"
            return cls(processes, 3 if fsdp else 0, optimizer, update=update)
        zero = deepspeed.get("zero_optimization", {})
        of_optimizer, of_weights = (
            zero.get(f"offload_{kind}", {}).get("device") not in (None, "none")
            for kind in ("optimizer", "param")
        )
        # DeepSpeed keeps float32 copies of the trained weights.
        return cls(processes, zero.get("stage", 0), 4 + optimizer, of_optimizer, of_weights, "none")


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes of each rank by their use, on its device and in the host's memory.

    `reused` is what need not be there at the peak, because others use the same memory at another time.
    """

    device: dict[str, float]
    host: dict[str, float]
    reused: float = 0.0

    @property
    def peak(self) -> float:
        """Peak bytes on the device."""
        return sum(self.device.values()) - self.reused


def plan_memory(footprint: Footprint, passed: Pass, sharing: Sharing) -> Plan:
    """Estimate the memory of a rank at its peak.

    That is the start or the end of the backward pass, or the optimizer's update, which comes when the
    activations are gone. The first pass of a step starts without gradients, which appear as they go.
    """
    stage, processes = sharing.zero_stage, sharing.processes
    weight_shards = processes if stage == 3 else 1
    # DDP copies all gradients into the buckets it sends; from ZeRO-2 on, a rank keeps its shard only.
    copies = 1 / processes if stage >= 2 else 2 if processes > 1 and stage == 0 else 1
    weights = {
        "frozen weights": footprint.frozen / weight_shards,
        "trained weights": footprint.trained / weight_shards,
    }
    learning = {
        "gradients": footprint.trained * copies,
        "optimizer": footprint.trained_count * sharing.optimizer / (processes if stage else 1),
    }
    working = {
        "activations": _activations(footprint, passed, keeps_casts=stage < 3),
        "logits and loss": footprint.logit * passed.logits,
    }
    if stage == 3:
        whole = footprint.frozen + footprint.trained
        working = {"weights in one piece": min(whole, _LIVE_WEIGHTS * footprint.weight_size), **working}
    backward = sum(working.values())
    if not passed.follows and processes == 1 and not sharing.offloads_optimizer:
        backward -= min(learning["gradients"], working["activations"] + working["logits and loss"])
    copies = {"each": 2 * footprint.largest_trained, "all": footprint.trained, "none": 0.0}[sharing.update]
    update = copies / weight_shards
    reused = sum(working.values()) + update - max(backward, update)
    host: dict[str, float] = {}
    if sharing.offloads_optimizer:
        host, learning = {**host, **learning}, {}
    if sharing.offloads_weights:
        host, weights = {**weights, **host}, {}
    if update:
        working["optimizer's update"] = update
    return Plan({**weights, **learning, **working}, host, reused)


def layers_to_recompute(footprint: Footprint, passed: Pass, sharing: Sharing, room: float) -> int:
    """Return the fewest layers to recompute so that a pass fits into `room` bytes; all if none suffice."""
    for count in range(footprint.layers):
        if plan_memory(footprint, replace(passed, recomputed=count), sharing).peak <= SHARE * room:
            return count
    return footprint.layers


def remedies(
    footprint: Footprint, batch: Batch, sharing: Sharing, *, recomputed: int, can_quantise: bool
) -> Iterator[tuple[str, Plan]]:
    """Yield flags that lower the memory without changing what is learned, and the plan with them.

    Each entry includes the flags of the entries before it.

    Args:
        footprint: Current footprint of the model.
        batch: Current largest micro-batch.
        sharing: Current sharing between ranks.
        recomputed: Current number of recomputed layers.
        can_quantise: Whether the frozen weights are the base of an adapter, in 16 or 32 bits.
    """
    flags = []
    if recomputed < footprint.layers:
        flags.append("--checkpoint_layers all" if recomputed else "--gradient_checkpointing True")
        recomputed = footprint.layers
        yield " ".join(flags), plan_memory(footprint, batch.passed(recomputed), sharing)
    while (smaller := batch.halved()) is not None:
        batch = smaller
        yield " ".join([*flags, batch.flags]), plan_memory(footprint, batch.passed(recomputed), sharing)
    flags.append(batch.flags)
    if can_quantise and sharing.zero_stage < 3:
        quantised = replace(footprint, frozen=footprint.frozen * _FOUR_BITS / footprint.weight_size)
        yield " ".join([*flags, "--bits 4"]), plan_memory(quantised, batch.passed(recomputed), sharing)
    if sharing.processes > 1 and sharing.zero_stage < 3:
        sharing = replace(sharing, zero_stage=3, update="none")
        yield (
            " ".join([*flags, "--deepspeed scripts/zero3.json"]),
            plan_memory(footprint, batch.passed(recomputed), sharing),
        )
    if sharing.zero_stage == 3 and not sharing.offloads_weights:
        sharing = replace(sharing, offloads_weights=True, offloads_optimizer=True)
        yield (
            " ".join([*flags, "--deepspeed scripts/zero3_offload.json"]),
            plan_memory(footprint, batch.passed(recomputed), sharing),
        )


def room_on(device: torch.device, model: nn.Module) -> float:
    """Return the bytes that a rank may use on its device: what is free, plus what its model already takes."""
    own = sum(stored_bytes(weight) for weight in model.parameters() if weight.device.type == device.type)
    return free_memory(device) + own


def free_memory(device: torch.device) -> float:
    """Return the free bytes of a GPU; on the CPU, this rank's equal part of the machine's."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    free = min(float(psutil.virtual_memory().available), _free_in_cgroup(Path("/sys/fs/cgroup")))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _activations(footprint: Footprint, passed: Pass, *, keeps_casts: bool) -> float:
    # Recomputing a layer needs all its activations again, but those of the kept layers are freed by then.
    kept = max(footprint.layers - passed.recomputed, 1)
    per_position = kept * footprint.layer_position + passed.recomputed * footprint.layer_input
    # Autocast keeps cast weights until the end of the forward pass, also for recomputed layers.
    casts = footprint.layers * footprint.layer_fixed if keeps_casts else 0.0
    return casts + (per_position + footprint.outside) * passed.positions


def _free_in_cgroup(root: Path) -> float:
    """Return what a container may still use: its limit less what it uses, except file cache."""
    for limit, usage in (("memory.max", "memory.current"), _OLDER_CGROUP):
        try:
            maximum, used = (root / limit).read_text(), float((root / usage).read_text())
            stat = dict(
                line.split() for line in (root / usage).with_name("memory.stat").read_text().splitlines()
            )
            return float(maximum) - used + float(stat.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file, or no limit ("max")
            continue
    return float("inf")
