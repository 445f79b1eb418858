"""Refuse combinations of ZeRO stages, quantization and FSDP that are not supported.

scripts/v1_5/DISTRIBUTED.md has it as a table for users, and a test holds that against what happens.
"""

from __future__ import annotations

from collections.abc import Iterator

from llava.schema import JsonObject


def unsupported(*, bits: int, fsdp: bool, deepspeed: JsonObject | None) -> Iterator[str]:
    """Yield one message per unsupported setting, with the reason and what to use instead.

    Args:
        bits: 16, or 4 or 8 for a quantised base.
        fsdp: Whether --fsdp asks for anything.
        deepspeed: What the file named by --deepspeed holds; None without it.
    """
    if fsdp:
        yield (
            "--fsdp: is not tested here, because accelerate has no FSDP for CPU processes and trains with "
            "DDP instead; --deepspeed scripts/zero3.json shares out weights just as well"
        )
    if deepspeed is None:
        return
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    if stage not in (2, 3):
        yield f"--deepspeed: ZeRO stage {stage} is not tested here; use scripts/zero2.json or zero3.json"
    if stage == 3 and bits in (4, 8):
        yield (
            f"--bits {bits} under ZeRO-3: quantised weights are not shared out in parts; "
            "use --deepspeed scripts/zero2.json"
        )
    for entry in ("optimizer", "scheduler"):
        # The original's zero3_offload.json has both: a constant rate, and none of its own for the projector.
        if entry in deepspeed:
            yield f"--deepspeed: its entry {entry!r} would replace what the flags ask for; remove it"
